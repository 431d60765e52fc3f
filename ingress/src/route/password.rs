//! Names and passwords (RFC 7617), checked against lines as `htpasswd` and `openssl passwd` write them.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest, Md5};
use sha_crypt::{PasswordVerifier, ShaCrypt};
use sha1::Sha1;

use crate::message::{Fields, Known};

/// A name and a password are asked for.
#[derive(Clone, Debug)]
pub struct Password {
    users: Arc<Users>,
    challenge: String,
}

/// Users and what their passwords are checked against.
pub(super) struct Users {
    users: HashMap<String, Hash>,
    version: u64,
}

/// What a password is checked against.
enum Hash {
    /// `{PLAIN}`
    Plain(String),
    /// `{SHA}`, and with salt `{SSHA}`.
    Sha1 { digest: Vec<u8>, salt: Vec<u8> },
    /// `$apr1$` and `$1$`.
    Md5 { magic: &'static str, salt: String, digest: String },
    /// `$2a$`, `$2b$`, `$2y$`.
    Bcrypt(String),
    /// `$5$` and `$6$`.
    Sha2(String),
}

/// The most work that a password may cost: 2 to this power rounds of bcrypt, about a second.
const BCRYPT_COST: u32 = 14;

/// The same of SHA-2.
const SHA2_ROUNDS: u32 = 500_000;

/// Longer passwords, in bytes, are nobody's: the work grows with the length, and `htpasswd` makes none that long.
const LONGEST: usize = 256;

impl Password {
    pub(super) fn new(users: Arc<Users>, realm: &str) -> Self {
        let realm = realm.replace('\\', "\\\\").replace('"', "\\\"");
        let challenge = format!("Basic realm=\"{realm}\"");
        Self { users, challenge }
    }

    /// Whether a request with `headers` comes from one of the users. It may take as long as whoever made the
    /// Secret wanted it to: up to about a second.
    pub fn check(&self, headers: &Fields) -> bool {
        let Some((name, password)) = credentials(headers) else { return false };
        self.users.users.get(&name).is_some_and(|hash| hash.fits(&password))
    }

    /// Whether [`Self::check`] may take more than some microseconds.
    pub fn is_slow(&self, headers: &Fields) -> bool {
        let hash = credentials(headers).and_then(|(name, _)| self.users.users.get(&name));
        matches!(hash, Some(Hash::Md5 { .. } | Hash::Bcrypt(_) | Hash::Sha2(_)))
    }

    /// Changes whenever what [`Self::check`] says for the same header might: for whoever remembers that.
    pub fn version(&self) -> u64 {
        self.users.version
    }

    /// `WWW-Authenticate` of the 401 for who is nobody.
    pub fn challenge(&self) -> &str {
        &self.challenge
    }
}

impl Users {
    /// From lines of `user:hash`; empty ones and those that begin with `#` mean nothing. Told to `problem`
    /// are lines whose user cannot come in, without what is in them.
    pub(super) fn new(text: &str, problem: &mut dyn FnMut(String)) -> Self {
        let mut users = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // What stands behind a second colon is a comment.
            let mut fields = line.split(':');
            let name = fields.next().unwrap_or_default();
            match fields.next().filter(|_| !name.is_empty()).map(Hash::read) {
                Some(Some(hash)) => _ = users.insert(name.to_owned(), hash),
                _ => problem(format!(
                    "line {number} of the users is in no form that is known here (bcrypt, SHA-512, SHA-256, \
                     MD5, {{SHA}}, {{SSHA}}, {{PLAIN}}), or takes too long to check: that user cannot come in"
                )),
            }
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self { users, version: hasher.finish() }
    }
}

impl Hash {
    fn read(text: &str) -> Option<Self> {
        if let Some(plain) = text.strip_prefix("{PLAIN}") {
            return Some(Self::Plain(plain.to_owned()));
        }
        if let Some(digest) = text.strip_prefix("{SHA}") {
            let digest = BASE64_STANDARD.decode(digest).ok().filter(|digest| digest.len() == 20)?;
            return Some(Self::Sha1 { digest, salt: Vec::new() });
        }
        if let Some(both) = text.strip_prefix("{SSHA}") {
            let mut digest = BASE64_STANDARD.decode(both).ok().filter(|both| both.len() > 20)?;
            let salt = digest.split_off(20);
            return Some(Self::Sha1 { digest, salt });
        }
        for magic in ["$apr1$", "$1$"] {
            if let Some((salt, digest)) =
                text.strip_prefix(magic).and_then(|rest| rest.split_once('$'))
            {
                let salt = salt.get(..8).unwrap_or(salt).to_owned();
                return Some(Self::Md5 { magic, salt, digest: digest.to_owned() });
            }
        }
        if let Some((cost, _)) =
            text.strip_prefix("$2").and_then(|rest| rest.get(2..)?.split_once('$'))
        {
            let bearable = cost.parse().is_ok_and(|cost: u32| cost <= BCRYPT_COST);
            return (bearable && text.len() == 60).then(|| Self::Bcrypt(text.to_owned()));
        }
        if let Some(rest) = text.strip_prefix("$5$").or_else(|| text.strip_prefix("$6$")) {
            let rounds = rest.strip_prefix("rounds=").map(|rest| {
                let rounds = rest.split('$').next().unwrap_or_default();
                rounds.parse().unwrap_or(u32::MAX)
            });
            return rounds
                .is_none_or(|rounds| rounds <= SHA2_ROUNDS)
                .then(|| Self::Sha2(text.to_owned()));
        }
        None
    }

    fn fits(&self, password: &str) -> bool {
        match self {
            Self::Plain(plain) => same(plain.as_bytes(), password.as_bytes()),
            Self::Sha1 { digest, salt } => {
                let made = Sha1::new().chain_update(password).chain_update(salt).finalize();
                same(&made, digest)
            }
            Self::Md5 { magic, salt, digest } => {
                let made = md5_crypt(magic, salt.as_bytes(), password.as_bytes());
                same(made.as_bytes(), digest.as_bytes())
            }
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Sha2(hash) => {
                let verifier = ShaCrypt::default();
                PasswordVerifier::<str>::verify_password(&verifier, password.as_bytes(), hash)
                    .is_ok()
            }
        }
    }
}

/// Says how many there are, and nothing of them.
impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({})", self.users.len())
    }
}

/// The name and password that a request comes with.
fn credentials(headers: &Fields) -> Option<(String, String)> {
    let (scheme, token) = headers.text(Known::Authorization)?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64_STANDARD.decode(token.trim()).ok()?).ok()?;
    let (name, password) = text.split_once(':').filter(|(_, word)| word.len() <= LONGEST)?;
    Some((name.to_owned(), password.to_owned()))
}

/// Whether two texts are the same, in a time that says nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// The `crypt` of FreeBSD with MD5, as Apache and OpenSSL have it as well.
fn md5_crypt(magic: &str, salt: &[u8], password: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let once =
        Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut start = Md5::new().chain_update(password).chain_update(magic).chain_update(salt);
    let mut left = password.len();
    while left > 0 {
        start.update(&once[..left.min(16)]);
        left = left.saturating_sub(16);
    }
    let mut bits = password.len();
    while bits > 0 {
        start.update(if bits & 1 == 1 { &[0] } else { &password[..1] });
        bits >>= 1;
    }
    let mut digest = start.finalize();
    for round in 0..1000 {
        let mut next = Md5::new();
        let odd = round & 1 == 1;
        next.update(if odd { password } else { &digest });
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        next.update(if odd { &digest } else { password });
        digest = next.finalize();
    }
    let mut text = String::with_capacity(22);
    let mut push = |bytes: [u8; 3], digits| {
        let mut value = bytes.into_iter().fold(0, |value, byte| value << 8 | usize::from(byte));
        for _ in 0..digits {
            text.push(char::from(DIGITS[value & 63]));
            value >>= 6;
        }
    };
    for [a, b, c] in [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]] {
        push([digest[a], digest[b], digest[c]], 4);
    }
    push([0, 0, digest[11]], 2);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(users: &str) -> (Password, Vec<String>) {
        let mut problems = Vec::new();
        let users = Users::new(users, &mut |problem| problems.push(problem));
        (Password::new(Arc::new(users), "the \"shop\""), problems)
    }

    fn headers(credentials: &str) -> Fields {
        let value = format!("Basic {}", BASE64_STANDARD.encode(credentials));
        Fields::from_iter([(Known::Authorization, value)])
    }

    /// What OpenSSL and libxcrypt have made of these passwords.
    const USERS: &[(&str, &str, &str)] = &[
        ("plain", "secret", "{PLAIN}secret"),
        ("sha", "secret:word", "{SHA}RTNLdD5+9/4RxR5BjupkNuoVPsg="),
        ("salted", "secret:word", "{SSHA}BtKBKX6Rxr5XAD1nZ8gocE+rhPpzYWx0eQ=="),
        ("apr1", "secret:word", "$apr1$r31.....$r5oXzN0Tt/CiCCZnJq7Pv0"),
        ("long", "a-password-longer-than-sixteen-bytes", "$apr1$x$frqT4m8sLipITOVFTDhgh/"),
        ("md5", "secret:word", "$1$abcdefgh$FqgGqspCbbbrkXgx/Bvl1/"),
        ("sha256", "secret:word", "$5$saltstring$2MjyL3Mnt7zhyhBS0MAt/psXFUdXT9QwZlCg01490OD"),
        (
            "sha512",
            "secret:word",
            "$6$saltstring$EdkjD15Jz84SdgiPTJrRhUv/wKQE7h7J.kekzeYPL28xqgQm0.Tz56CD9j1YoX4wXPUamKlDgemMfsQ0kovAr.",
        ),
        (
            "rounds",
            "secret:word",
            "$6$rounds=1000$saltstring$V8alhi1g9sHeXvK0WFCqn46LC2KcElcDFwdybsJpeSpyJN/HhdtC3eojBK02yZ58kY3Rcnq22kAAZg9zdoRdO0",
        ),
        ("bcrypt", "secret:word", "$2b$04$abcdefghijklmnopqrstuuzi.0DeJjRkdQvpv3c3e0jCmc2WMJJJq"),
    ];

    #[test]
    fn each_form_is_checked() {
        let lines: Vec<_> =
            USERS.iter().map(|(name, _, hash)| format!("{name}:{hash}\n")).collect();
        let (password, problems) = password(&lines.concat());
        assert!(problems.is_empty(), "{problems:?}");
        for (name, good, _) in USERS {
            assert!(password.check(&headers(&format!("{name}:{good}"))), "{name}");
            assert!(!password.check(&headers(&format!("{name}:{good}x"))), "{name}");
            assert!(!password.check(&headers(&format!("{name}:"))), "{name}");
        }
        assert!(!password.check(&headers("nobody:secret:word")));
        assert!(!password.check(&Fields::new()));
        assert!(!password.is_slow(&headers("plain:x")) && password.is_slow(&headers("bcrypt:x")));
        assert_eq!(password.challenge(), "Basic realm=\"the \\\"shop\\\"\"");
    }

    #[test]
    fn what_cannot_be_checked_lets_nobody_in_and_is_not_printed() {
        let (password, problems) = password(
            "# comment\n\na:{PLAIN}x:more\nb:rqXexS6ZhobKA\nc:{SHA}AAAA\nd:$2y$31$x\ne\nf:$5$rounds=9999999$a$b",
        );
        assert!(password.check(&headers("a:x")));
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(problems[0].starts_with("line 4 ") && !problems[0].contains("rqX"));
        assert!(!password.check(&headers("b:")));
        assert_eq!(format!("{:?}", password.users), "Users(1)");
    }

    #[test]
    fn credentials_that_are_none_are_nobodys() {
        let of_length = |length| {
            let (password, _) = password(&format!("a:{{PLAIN}}{}", "x".repeat(length)));
            password.check(&headers(&format!("a:{}", "x".repeat(length))))
        };
        assert!(of_length(LONGEST) && !of_length(LONGEST + 1));
        let (password, _) = password("a:{PLAIN}x\n:{PLAIN}");
        for value in ["Basic", "Basic ", "Basic !!", "Bearer YTp4", "Basic YQ==", "Basic /w=="] {
            let headers = Fields::from_iter([(Known::Authorization, value)]);
            assert!(!password.check(&headers), "{value}");
        }
        let lower = Fields::from_iter([(Known::Authorization, "basic YTp4")]);
        assert!(password.check(&lower));
    }
}
