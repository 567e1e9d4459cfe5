//! Reads a small text file whole, and refuses a large one: a wrong path may name a device or a dump.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Largest file that is a configuration or holds a password.
const LIMIT_BYTES: u64 = 1 << 20;

/// The file's text, or why it is none.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LIMIT_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        return Err(io::Error::other(format!("it is larger than {} kB", LIMIT_BYTES >> 10)));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_small_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (content, expected) in [
            (b"a = 1\n".to_vec(), Ok("a = 1\n")),
            (vec![0xff, 0xfe], Err("not UTF-8")),
            (vec![b' '; (1 << 20) + 1], Err("larger than 1024 kB")),
        ] {
            std::fs::write(&path, content).unwrap();
            match (read(&path), expected) {
                (Ok(text), Ok(expected)) => assert_eq!(text, expected),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (read, expected) => panic!("{read:?} instead of {expected:?}"),
            }
        }
        assert!(read(Path::new("/dev/zero")).is_err() && read(folder.path()).is_err());
    }
}
