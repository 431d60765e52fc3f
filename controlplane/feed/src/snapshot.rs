//! The last good model on disk, so that a node comes back while the control plane is away.
//!
//! One line that says what follows, padded so that it can be written last, then the model as one JSON
//! document:
//!
//! ```text
//! {"format":1,"length":1234,"hash":"0123456789abcdef"}
//! {"nodes":[...],"services":[...],"endpoints":[...],"pods":[...]}
//! ```
//!
//! Secrets and the keys of tickets are never in it. A gateway's says for which group it is (`"owner"`, a hash of the name).

use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use fairway_model::{Invalid, Model};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, HASH_OF_NOTHING, hash, hash_on};
use crate::disk;

/// Changes when an older version could misread what a newer one writes.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    length: usize,
    hash: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Digest>,
}

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("cannot read it")]
    Io(#[source] io::Error),
    #[error("it does not begin with a header; it is no snapshot, or it is damaged")]
    NoHeader,
    #[error("it has format {0}, this version reads format {FORMAT}")]
    Format(u32),
    #[error("it is damaged: length or hash do not match")]
    Damaged,
    #[error("it is of another group of gateways")]
    Others,
    #[error("its contents are not a model")]
    NotAModel(#[source] serde_json::Error),
    #[error("its contents break the rules")]
    Invalid(#[source] Invalid),
}

/// Bytes of the first line, without its end.
const HEADER: usize = 128;
/// Bytes that are handed to the kernel at once.
const CHUNK: usize = 1 << 16;

/// Writes what is no secret of `model`, for that group of gateways if it is one's, so that the file is always whole.
/// Blocks on the disk.
pub(crate) fn save(path: &Path, model: &Model, owner: Option<&str>) -> io::Result<()> {
    let model = without_secrets(model);
    disk::replace_by(path, |file| write(&mut BufWriter::with_capacity(CHUNK, file), &model, owner))
}

fn without_secrets(model: &Model) -> Model {
    let mut model = model.clone();
    (model.secrets, model.ticket_keys) = Default::default();
    model
}

/// Reads what [`save`] wrote for the same; `None` if there is no file.
pub(crate) fn load(path: &Path, owner: Option<&str>) -> Result<Option<Model>, Unusable> {
    match std::fs::read(path) {
        Ok(bytes) => decode(&bytes, owner).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Unusable::Io(error)),
    }
}

/// What stands for the name of a group.
fn digest_of(owner: Option<&str>) -> Option<Digest> {
    owner.map(|owner| Digest::of(hash(owner.as_bytes())))
}

fn write(out: &mut (impl Write + Seek), model: &Model, owner: Option<&str>) -> io::Result<()> {
    writeln!(out, "{:HEADER$}", "")?;
    let mut body = Body { out: &mut *out, length: 0, hash: HASH_OF_NOTHING };
    serde_json::to_writer(&mut body, model)?;
    let Body { length, hash, .. } = body;
    let mut digest = Digest::default();
    digest.add(hash);
    let owner = digest_of(owner);
    let header = serde_json::to_string(&Header { format: FORMAT, length, hash: digest, owner })?;
    out.rewind()?;
    write!(out, "{header:HEADER$}")?;
    out.flush()
}

/// Counts and hashes what goes through.
struct Body<W> {
    out: W,
    length: usize,
    hash: u64,
}

impl<W: Write> Write for Body<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.length += written;
        self.hash = hash_on(self.hash, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn decode(bytes: &[u8], owner: Option<&str>) -> Result<Model, Unusable> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (header, body) = bytes.split_at(end.ok_or(Unusable::NoHeader)?);
    let body = &body[1..];
    let header: Header = serde_json::from_slice(header).map_err(|_| Unusable::NoHeader)?;
    if header.format != FORMAT {
        return Err(Unusable::Format(header.format));
    }
    let mut digest = Digest::default();
    digest.add(hash(body));
    if header.length != body.len() || header.hash != digest {
        return Err(Unusable::Damaged);
    }
    if header.owner != digest_of(owner) {
        return Err(Unusable::Others);
    }
    let model: Model = serde_json::from_slice(body).map_err(Unusable::NotAModel)?;
    model.validate().map_err(Unusable::Invalid)?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use fairway_model::{Node, Object, ObjectName, Secret, Sensitive, TicketKey};
    use proptest::prelude::*;

    use super::*;

    fn encode(model: &Model) -> io::Result<Vec<u8>> {
        let mut file = io::Cursor::new(Vec::new());
        write(&mut file, model, None)?;
        Ok(file.into_inner())
    }

    fn model() -> Model {
        let node = Object::Node(Node {
            name: "n1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
            ..Node::default()
        });
        [node].into_iter().collect()
    }

    #[test]
    fn a_saved_model_is_loaded_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        assert_eq!(load(&path, None).unwrap(), None);
        save(&path, &model(), None).unwrap();
        assert_eq!(load(&path, None).unwrap(), Some(model()));
    }

    #[test]
    fn a_group_uses_no_other_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        for owner in [Some("edge"), None] {
            save(&path, &model(), owner).unwrap();
            assert_eq!(load(&path, owner).unwrap(), Some(model()));
            for other in [Some("inner"), Some("edge"), None] {
                let found = load(&path, other);
                assert_eq!(matches!(found, Err(Unusable::Others)), owner != other, "{found:?}");
            }
        }
    }

    #[test]
    fn no_secret_is_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let secret = Secret {
            name: ObjectName::new("shop", "web-tls"),
            certificate: Some("the certificate".into()),
            key: Some(Sensitive::new("the key")),
            users: Some(Sensitive::new("the users")),
            ..Secret::default()
        };
        let tickets = TicketKey { key: Sensitive::new("the tickets"), ..TicketKey::default() };
        let secrets = [Object::Secret(secret), Object::TicketKey(tickets)];
        save(&path, &model().objects().chain(secrets).collect(), Some("edge")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("the ") && !text.contains("web-tls"), "{text}");
        assert_eq!(load(&path, Some("edge")).unwrap(), Some(model()));
    }

    #[test]
    fn a_header_need_not_be_padded() {
        let bytes = encode(&model()).unwrap();
        let (header, body) = bytes.split_at(HEADER);
        let bytes = [header.trim_ascii_end(), body].concat();
        assert_eq!(decode(&bytes, None).unwrap(), model());
    }

    #[test]
    fn another_format_is_named() {
        let error = decode(b"{\"format\":9,\"length\":0,\"hash\":\"0\"}\n", None).unwrap_err();
        assert_eq!(error.to_string(), "it has format 9, this version reads format 1");
    }

    proptest! {
        #[test]
        fn no_shortened_file_is_used(keep in 0.0..1.0_f64) {
            let bytes = encode(&model()).unwrap();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let length = (bytes.len() as f64 * keep) as usize;
            prop_assert!(decode(&bytes[..length], None).is_err());
        }

        #[test]
        fn no_changed_body_is_used(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let mut bytes = encode(&model()).unwrap();
            let body = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            let at = body + at.index(bytes.len() - body);
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes, None).is_err());
        }

        #[test]
        fn noise_is_no_snapshot(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes, None).is_err());
        }
    }
}
