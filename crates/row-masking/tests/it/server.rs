//! A throw-away PostgreSQL for these tests.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Ends with the value.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let owner = owner();
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group))
                .expect("root may give folders away");
        }
        let data = folder.path().join("data");
        let programs = programs();
        let mut initdb = as_owner(&programs.join("initdb"), owner);
        initdb
            .args([
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "-N",
                "-D",
            ])
            .arg(&data);
        let made = initdb.current_dir("/").output().expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = port.expect("a free port").port();
        let mut server = as_owner(&programs.join("postgres"), owner);
        server.arg("-D").arg(&data).arg("-k").arg(folder.path()).args([
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
        ]);
        server
            .arg(format!("port={port}"))
            .args(["-c", "fsync=off"])
            .current_dir("/")
            .stderr(Stdio::null());
        let child = server.spawn().expect("postgres starts");
        let server = Self {
            child,
            port,
            _folder: folder,
        };
        // Until it answers; a server that ended is a failure, not a wait.
        while let Err(error) = server.try_connect().await {
            assert!(server.is_running(), "postgres ended: {error}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        server
    }

    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        self.try_connect().await.expect("the server answers")
    }

    async fn try_connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let address = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        let (client, connection) = tokio_postgres::connect(&address, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn is_running(&self) -> bool {
        Path::new(&format!("/proc/{}", self.child.id())).exists()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing of it is kept, so it need not shut down in order.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL's server is installed");
    let newest = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists());
    newest.max().expect("PostgreSQL's server is installed")
}

/// PostgreSQL does not run as root.
fn owner() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = users
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .map(str::to_owned);
    let ids = line.and_then(|line| {
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    root.then(|| ids.expect("the user postgres exists"))
}

fn as_owner(program: &Path, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}
