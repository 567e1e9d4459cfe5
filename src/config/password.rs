//! Where a password comes from, first found first taken: the url, password_file, a systemd credential, PGPASSWORD, the
//! password file. Shows none of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::{Host, Secret, ServerUrl, text_file};

/// Where a server's socket is by default.
const DEFAULT_SOCKET_FOLDERS: &[&str] = &["/tmp", "/var/run/postgresql", "/run/postgresql"];

/// The password of a url, or the reason why a named file cannot be read.
pub(super) fn resolve(
    url: &ServerUrl,
    password_file: Option<&Path>,
    credential: &str,
    environment: &Environment,
) -> Result<Option<Secret>, String> {
    if let Some(password) = &url.password {
        return Ok(Some(password.clone()));
    }
    if let Some(path) = password_file {
        return read_file(path).map(Some);
    }
    if let Some(path) =
        environment.credentials_directory().map(|folder| folder.join(credential)).filter(|path| path.exists())
    {
        return read_file(&path).map(Some);
    }
    if let Some(password) = environment.get("PGPASSWORD") {
        return Ok(Some(Secret::new(password)));
    }
    let named = environment.get("PGPASSFILE").map(PathBuf::from);
    let path = named.or_else(|| environment.home().map(|home| home.join(".pgpass")));
    Ok(path.and_then(|path| from_password_file(&path, url)))
}

/// A password that no url may hold: from a named file, else from a systemd credential.
pub(super) fn of_file(
    password_file: Option<&Path>,
    credential: &str,
    environment: &Environment,
) -> Result<Option<Secret>, String> {
    let credential =
        || environment.credentials_directory().map(|folder| folder.join(credential)).filter(|path| path.exists());
    password_file.map(Path::to_path_buf).or_else(credential).map(|path| read_file(&path)).transpose()
}

fn read_file(path: &Path) -> Result<Secret, String> {
    let text = text_file::read(path)
        .map_err(|error| format!("the password file {} cannot be read: {error}", path.display()))?;
    if text.contains('\0') {
        return Err(format!("the password file {} holds a zero byte, which no password can", path.display()));
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
}

/// The manual's page "The Password File": lines of host:port:database:user:password, `*` for any, `\` before `:` and `\`.
fn from_password_file(path: &Path, url: &ServerUrl) -> Option<Secret> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file is ignored: others may read it (chmod 600)");
        return None;
    }
    let content = text_file::read(path).ok()?;
    url.hosts.iter().find_map(|host| content.lines().find_map(|line| password_of(line, host, url)))
}

fn password_of(line: &str, host: &Host, url: &ServerUrl) -> Option<Secret> {
    if line.starts_with('#') {
        return None;
    }
    let fields = fields_of(line);
    let [line_host, port, database, user, password] = fields.get(..5)? else { return None };
    let (host, host_port) = match host {
        Host::Tcp(name, port) => (name.clone(), *port),
        // libpq's default folder, and Debian's, stand under "localhost"; another under its path.
        Host::Unix(folder, port) if DEFAULT_SOCKET_FOLDERS.iter().any(|known| folder == Path::new(known)) => {
            ("localhost".to_owned(), *port)
        }
        Host::Unix(folder, port) => (folder.display().to_string(), *port),
    };
    let fits = |field: &str, value: &str| field == "*" || field == value;
    let fits_all = fits(line_host, &host)
        && fits(port, &host_port.to_string())
        && (fits(database, &url.database) || database == "replication")
        && fits(user, &url.user);
    fits_all.then(|| Secret::new(password.clone()))
}

fn fields_of(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => fields.last_mut().into_iter().for_each(|field| field.extend(characters.next())),
            ':' if fields.len() < 5 => fields.push(String::new()),
            character => fields.last_mut().into_iter().for_each(|field| field.push(character)),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_password_file_is_split_and_unescaped() {
        assert_eq!(fields_of(r"h:1:d:u:a\:b\\c"), ["h", "1", "d", "u", r"a:b\c"]);
    }

    #[test]
    fn the_password_file_is_read_as_libpq_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        fs::write(&path, "# a comment\nother:*:*:*:no\n*:1:*:u:by port\nb:*:d:u:by host\nlocalhost:*:*:*:local\n/srv:*:*:*:by folder\n").unwrap();
        let variables = [("PGPASSFILE", path.to_str().unwrap())];
        let environment = Environment::from_pairs(variables);
        let password = |text: &str| {
            let url = super::super::libpq::parse(text, &environment).unwrap();
            resolve(&url, None, "none", &environment).unwrap().map(|secret| secret.reveal().to_owned())
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for (url, expected) in [
            ("postgres://u@a:1/d", Some("by port")),
            ("postgres://u@a,b/d", Some("by host")),
            ("postgres://v@a/d", None),
            ("postgres://v@/d?host=/tmp", Some("local")),
            ("postgres://v@/d?host=/srv", Some("by folder")),
        ] {
            assert_eq!(password(url).as_deref(), expected, "{url}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(password("postgres://u@a:1/d"), None);
    }
}
