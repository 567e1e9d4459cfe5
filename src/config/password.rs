//! Where a password comes from, first found first taken: the url, password_file, a systemd credential, PGPASSWORD, the
//! password file. Shows none of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::{Host, Secret, ServerUrl, text_file};

/// Where a server's socket is by default.
const DEFAULT_SOCKET_FOLDERS: &[&str] = &["/tmp", "/var/run/postgresql", "/run/postgresql"];

/// Gives a url its password, or those of its hosts. The error is the reason why a named file cannot be read.
pub(super) fn resolve(
    url: &mut ServerUrl,
    password_file: Option<&Path>,
    credential: &str,
    environment: &Environment,
) -> Result<(), String> {
    if url.password.is_some() {
        return Ok(());
    }
    url.password = match of_file(password_file, credential, environment)? {
        Some(password) => Some(password),
        None => environment.get("PGPASSWORD").map(Secret::new),
    };
    if url.password.is_none() {
        let named = environment.get("PGPASSFILE").map(PathBuf::from);
        let path = named.or_else(|| environment.home().map(|home| home.join(".pgpass")));
        url.host_passwords = path.map(|path| from_password_file(&path, url)).unwrap_or_default();
    }
    Ok(())
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
fn from_password_file(path: &Path, url: &ServerUrl) -> Vec<(Host, Secret)> {
    let Ok(facts) = fs::metadata(path) else { return Vec::new() };
    let mode = facts.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file is ignored: others may read it (chmod 600)");
        return Vec::new();
    }
    let Ok(content) = text_file::read(path) else { return Vec::new() };
    let of_host = |host: &Host| content.lines().find_map(|line| password_of(line, host, url));
    url.hosts.iter().filter_map(|host| Some((host.clone(), of_host(host)?))).collect()
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
            let mut url = super::super::libpq::parse(text, &environment).unwrap();
            resolve(&mut url, None, "none", &environment).unwrap();
            let seen = |host| url.at(host).password.map_or("-".to_owned(), |secret| secret.reveal().to_owned());
            url.hosts.iter().map(seen).collect::<Vec<_>>().join(" ")
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for (url, expected) in [
            ("postgres://u@a:1/d", "by port"),
            // Each host sees its own password and nobody else's.
            ("postgres://u@a,b/d", "- by host"),
            ("postgres://u@a:1,b/d", "by port by host"),
            ("postgres://v@a/d", "-"),
            ("postgres://v@/d?host=/tmp", "local"),
            ("postgres://v@/d?host=/srv", "by folder"),
            ("postgres://u:own@a:1,b/d", "own own"),
        ] {
            assert_eq!(password(url), expected, "{url}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(password("postgres://u@a:1/d"), "-");
    }
}
