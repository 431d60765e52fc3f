//! A gateway's secrets on its disk, sealed, so that it comes back while the control plane is away.
//!
//! ```text
//! fairway secrets 1\n      what it is
//! 12 bytes                 a random number, another one each time
//! the rest                 {"secrets":[...]}, by AES-256-GCM, which also holds the line above, the CA
//!                          of the feed that they came by, and the group of gateways
//! ```

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use fairway_model::{Invalid, Model, Objects, Secret};

use crate::derive::derive;
use crate::disk;
use crate::identity::Pin;

/// Changes with the format.
const MAGIC: &[u8] = b"fairway secrets 1\n";
/// No key is made of less.
const SHORTEST: usize = 32;

/// What secrets are sealed with.
#[derive(Clone, PartialEq, Eq)]
pub struct SealingKey([u8; 32]);

/// Shows nothing.
impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(…)")
    }
}

impl SealingKey {
    /// Made of `text`, whatever it looks like, but for white space around it. It is to be random; less than 32
    /// bytes of it are an error.
    pub fn new(text: &[u8]) -> io::Result<Self> {
        let text = text.trim_ascii();
        if text.len() < SHORTEST {
            let short =
                format!("a key for secrets has at least {SHORTEST} bytes, not {}", text.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, short));
        }
        Ok(Self(derive(text, &[b"fairway sealed secrets"])))
    }

    /// Of what a file holds. Blocks on the disk.
    pub fn from_file(path: &Path) -> io::Result<Self> {
        let about =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        fs::read(path).map_err(about).and_then(|text| Self::new(&text).map_err(about))
    }

    /// Of the credential of this name that the service manager gave (systemd's `LoadCredential=` and its like:
    /// a file in `$CREDENTIALS_DIRECTORY`); `None` if it gave none. Blocks on the disk.
    pub fn from_credential(name: &str) -> io::Result<Option<Self>> {
        match std::env::var_os("CREDENTIALS_DIRECTORY") {
            Some(folder) => Self::from_folder(Path::new(&folder), name),
            None => Ok(None),
        }
    }

    fn from_folder(folder: &Path, name: &str) -> io::Result<Option<Self>> {
        match Self::from_file(&folder.join(name)) {
            Ok(key) => Ok(Some(key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn aead(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, &self.0).expect("the key has its length")
    }
}

/// Where secrets are kept, and how.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// The file; its folder is made if need be.
    pub file: PathBuf,
    /// What they are sealed with. Not from the same disk, if that is to help against who gets hold of it.
    pub key: SealingKey,
}

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("cannot read it")]
    Io(#[source] io::Error),
    #[error("it does not begin as sealed secrets of this version do")]
    NotSealed,
    #[error(
        "it is damaged, or was sealed with another key, for another CA of the feed or another group"
    )]
    Damaged,
    #[error("its contents are no secrets")]
    NotSecrets,
    #[error("its contents break the rules")]
    Invalid(#[source] Invalid),
}

/// Whom secrets are for: the CA of the feed that they came by, and the group of gateways.
pub(crate) type For<'a> = (Option<Pin>, &'a str);

/// Writes secrets so that the file is always whole. Blocks on the disk.
pub(crate) fn save(sealed: &Sealed, whom: For<'_>, secrets: &Objects<Secret>) -> io::Result<()> {
    disk::replace_secret(&sealed.file, &seal(&sealed.key, whom, secrets)?)
}

/// Reads what [`save`] wrote for the same; `None` if there is no file.
pub(crate) fn load(sealed: &Sealed, whom: For<'_>) -> Result<Option<Objects<Secret>>, Unusable> {
    match fs::read(&sealed.file) {
        Ok(bytes) => open(&sealed.key, whom, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Unusable::Io(error)),
    }
}

fn seal(key: &SealingKey, whom: For<'_>, secrets: &Objects<Secret>) -> io::Result<Vec<u8>> {
    let model = Model { secrets: secrets.clone(), ..Model::default() };
    let mut text = serde_json::to_vec(&model)?;
    let made = key.aead().seal_in_place_append_tag(bound_to(whom), &mut text);
    let nonce = made.map_err(|_| io::Error::other("cannot seal secrets"))?;
    Ok([MAGIC, nonce.as_ref(), &text].concat())
}

fn open(key: &SealingKey, whom: For<'_>, bytes: &[u8]) -> Result<Objects<Secret>, Unusable> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(Unusable::NotSealed)?;
    let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(Unusable::Damaged)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unusable::Damaged)?;
    let mut text = text.to_vec();
    let opened = key.aead().open_in_place(nonce, bound_to(whom), &mut text);
    let opened = opened.map_err(|_| Unusable::Damaged)?;
    // What a parser says of them may show some.
    let model: Model = serde_json::from_slice(opened).map_err(|_| Unusable::NotSecrets)?;
    let secrets = Model { secrets: model.secrets, ..Model::default() };
    secrets.validate().map_err(Unusable::Invalid)?;
    Ok(secrets.secrets)
}

/// What a file is good for: this format, and the group whose control plane has this CA.
fn bound_to((ca, group): For<'_>) -> Aad<Vec<u8>> {
    let ca = ca.map(|pin| pin.to_string()).unwrap_or_default();
    Aad::from([MAGIC, ca.as_bytes(), b"\n", group.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use fairway_model::{ObjectName, Sensitive};
    use proptest::prelude::*;

    use super::*;

    fn secrets() -> Objects<Secret> {
        let mut secrets = Objects::default();
        secrets.insert(Secret {
            name: ObjectName::new("shop", "web-tls"),
            key: Some(Sensitive::new("the key")),
            ..Secret::default()
        });
        secrets
    }

    fn sealed(folder: &Path, key: u8) -> Sealed {
        let key = SealingKey::new(&[key; 32]).unwrap();
        Sealed { file: folder.join("made/secrets"), key }
    }

    fn pin(digit: &str) -> Option<Pin> {
        Some(format!("sha256:{}", digit.repeat(64)).parse().unwrap())
    }

    #[test]
    fn what_is_sealed_is_opened_with_the_same_key_for_the_same_ca_and_group_alone() {
        let folder = tempfile::tempdir().unwrap();
        let own = sealed(folder.path(), b'a');
        assert!(load(&own, (pin("1"), "edge")).unwrap().is_none());
        save(&own, (pin("1"), "edge"), &secrets()).unwrap();
        assert_eq!(load(&own, (pin("1"), "edge")).unwrap(), Some(secrets()));
        for (sealed, whom) in [
            (&own, (pin("2"), "edge")),
            (&own, (None, "edge")),
            (&own, (pin("1"), "inner")),
            (&sealed(folder.path(), b'b'), (pin("1"), "edge")),
        ] {
            assert!(matches!(load(sealed, whom), Err(Unusable::Damaged)));
        }
        let bytes = fs::read(&own.file).unwrap();
        for hidden in ["the key", "shop", "web-tls"] {
            assert!(!bytes.windows(hidden.len()).any(|part| part == hidden.as_bytes()));
        }
        assert_eq!(fs::metadata(&own.file).unwrap().permissions().mode() & 0o777, 0o600);
        // Nobody can tell from the file whether anything has changed.
        save(&own, (pin("1"), "edge"), &secrets()).unwrap();
        assert_ne!(fs::read(&own.file).unwrap(), bytes);
    }

    #[test]
    fn another_format_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let own = sealed(folder.path(), b'a');
        save(&own, (None, ""), &secrets()).unwrap();
        let mut bytes = fs::read(&own.file).unwrap();
        bytes[MAGIC.len() - 2] = b'2';
        fs::write(&own.file, bytes).unwrap();
        assert!(matches!(load(&own, (None, "")), Err(Unusable::NotSealed)));
    }

    #[test]
    fn a_key_is_made_of_whatever_is_long_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let digits = "0123456789abcdef0123456789abcdef";
        fs::write(&path, format!("{digits}\n")).unwrap();
        let key = SealingKey::from_file(&path).unwrap();
        assert_eq!(key, SealingKey::new(digits.as_bytes()).unwrap());
        assert_eq!(SealingKey::from_folder(folder.path(), "key").unwrap(), Some(key.clone()));
        assert_eq!(SealingKey::from_folder(folder.path(), "other").unwrap(), None);
        assert!(!format!("{key:?}").contains("01"), "{key:?}");
        fs::write(&path, &digits[1..]).unwrap();
        let error = SealingKey::from_file(&path).unwrap_err().to_string();
        assert!(error.ends_with("at least 32 bytes, not 31"), "{error}");
    }

    proptest! {
        #[test]
        fn no_changed_file_is_opened(
            at in any::<prop::sample::Index>(), bit in 0..8_u8, keep in any::<prop::sample::Index>()
        ) {
            let key = SealingKey::new(&[b'a'; 32]).unwrap();
            let mut bytes = seal(&key, (None, ""), &secrets()).unwrap();
            prop_assert_eq!(open(&key, (None, ""), &bytes).unwrap(), secrets());
            prop_assert!(open(&key, (None, ""), &bytes[..keep.index(bytes.len())]).is_err());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(open(&key, (None, ""), &bytes).is_err());
        }
    }
}
