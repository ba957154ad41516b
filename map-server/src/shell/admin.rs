//! The admin socket: one line of JSON asks, one line of JSON answers.
//!
//! Only root and the server's own user may ask: the socket file has mode 0600, and whoever connects
//! is looked at, because the file is there a moment before it has that mode. Connections are served
//! beside the loop, which gets nothing but whole, valid requests.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// What can be asked of a running map server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// To move clients from one xTR to another.
    Migrate {
        /// Whom they use now.
        from: String,
        /// Whom they shall use.
        to: String,
        /// Their names; all clients if absent.
        clients: Option<BTreeSet<String>>,
        /// Whether to say only what would be done.
        dry_run: bool,
    },
    /// To move all clients of an xTR to others, and to give it no new ones.
    Drain {
        /// Whom they use now.
        from: String,
        /// Whether to say only what would be done.
        dry_run: bool,
    },
    /// To let an xTR have clients again.
    Undrain {
        /// Which xTR.
        from: String,
    },
    /// How far migrations have come.
    Migrations {
        /// Those of one command; all that are remembered if absent.
        run: Option<u64>,
        /// Whether to count them only.
        counts: bool,
    },
}

/// A request, and where its answer goes.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) request: Request,
    answer: oneshot::Sender<Value>,
}

impl Question {
    /// Answers; whoever asked may have left.
    pub(super) fn answer(self, answer: Value) {
        drop(self.answer.send(answer));
    }
}

/// The socket, and the questions that came through it. The file goes when this is dropped.
#[derive(Debug)]
pub(super) struct Admin {
    path: PathBuf,
    questions: mpsc::Receiver<Question>,
    /// The task that accepts connections; it ends with those that are open.
    _accepting: JoinSet<()>,
}

impl Admin {
    /// Opens the socket at `path`. A file that a killed server left is replaced.
    ///
    /// # Errors
    /// A running server answers there, or the file cannot be made.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let listener = listen(path).with_context(|| format!("admin socket {}", path.display()))?;
        let own = own_user().context("cannot tell who may use the admin socket")?;
        let (sender, questions) = mpsc::channel(CONNECTIONS);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, own, sender));
        Ok(Self {
            path: path.to_owned(),
            questions,
            _accepting: accepting,
        })
    }

    /// Waits for the next question. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Question {
        match self.questions.recv().await {
            Some(question) => question,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %self.path.display(), %error, "admin socket not removed");
        }
    }
}

/// The user that this process acts as: the one at both ends of a connection to itself.
fn own_user() -> io::Result<u32> {
    let (end, _other) = UnixStream::pair()?;
    Ok(end.peer_cred()?.uid())
}

/// Whether whoever is at the other end of `stream` may ask a server of the user `own`.
fn may_ask(stream: &UnixStream, own: u32) -> bool {
    let user = stream.peer_cred().map(|peer| peer.uid());
    user.is_ok_and(|user| user == 0 || user == own)
}

fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        let made = private.create(directory);
        made.context("cannot make its directory; see `admin_socket`")?;
    }
    match BlockingStream::connect(path) {
        Ok(_) => bail!(
            "another server answers there; stop that one, or give this one another `admin_socket`"
        ),
        // Nobody listens: a killed server has left it.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            ensure!(
                is_socket,
                "there is a file that is no socket; remove it, or set another `admin_socket`"
            );
            fs::remove_file(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error)
                .context("cannot be used; remove what is there, or set another `admin_socket`");
        }
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves connections of root and the user `own` until nobody takes questions any more.
async fn accept(listener: UnixListener, own: u32, questions: mpsc::Sender<Question>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = questions.closed() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, say: the connection still waits to be accepted.
                debug!(%error, "admin socket");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        // Above the limit a connection is closed at once.
        if may_ask(&stream, own)
            && let Ok(permit) = Arc::clone(&room).try_acquire_owned()
        {
            let questions = questions.clone();
            open.spawn(async move {
                if let Err(error) = serve(stream, questions).await {
                    debug!(%error, "admin connection");
                }
                drop(permit);
            });
        }
        while open.try_join_next().is_some() {}
    }
}

/// Reads one request and writes its answer.
async fn serve(stream: UnixStream, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut limited = BufReader::new(read.take(REQUEST_BYTES));
    let reading = limited.read_until(b'\n', &mut line);
    timeout(REQUEST_WAIT, reading).await??;
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => ask(request, &questions).await,
        Err(error) => json!({ "error": format!("no request of this version: {error}") }),
    };
    let mut bytes = answer.to_string().into_bytes();
    bytes.push(b'\n');
    timeout(ANSWER_WAIT, write.write_all(&bytes)).await?
}

async fn ask(request: Request, questions: &mpsc::Sender<Question>) -> Value {
    let (answer, answered) = oneshot::channel();
    let question = Question { request, answer };
    let stopping = || json!({ "error": "the server is stopping" });
    if questions.send(question).await.is_err() {
        return stopping();
    }
    answered.await.unwrap_or_else(|_| stopping())
}

/// How long to wait when a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Connections served at a time.
const CONNECTIONS: usize = 8;
/// Longest request: it may name many clients.
const REQUEST_BYTES: u64 = 1 << 20;
/// How long a request may take to arrive.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How long an answer may take to be read.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    async fn exchange(path: &Path, line: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        // What was not read of a request that is too long resets the connection.
        drop(stream.write_all(line.as_bytes()).await);
        drop(stream.shutdown().await);
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer).await);
        answer
    }

    #[tokio::test]
    async fn a_request_gets_its_answer_and_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let mut admin = Admin::open(&path).unwrap();
        for (path, wanted) in [(path.as_path(), 0o600), (path.parent().unwrap(), 0o700)] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, wanted, "{}", path.display());
        }
        let asked = path.clone();
        let client = tokio::spawn(async move {
            exchange(&asked, "{\"command\":\"undrain\",\"from\":\"proxy-a\"}\n").await
        });
        let question = admin.next().await;
        let from = "proxy-a".to_owned();
        assert_eq!(question.request, Request::Undrain { from });
        question.answer(json!({ "run": 1 }));
        assert_eq!(client.await.unwrap(), "{\"run\":1}\n");
        drop(admin);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_without_bothering_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let _admin = Admin::open(&path).unwrap();
        for line in ["", "\n", "migrate\n", "{\"command\":\"reboot\"}\n"] {
            let answer = exchange(&path, line).await;
            assert!(answer.contains("no request of this version"), "{answer}");
        }
        exchange(&path, &"x".repeat(2 << 20)).await;
        let next = exchange(&path, "\n").await;
        assert!(
            next.contains("error"),
            "a long request harms nobody: {next}"
        );
    }

    #[tokio::test]
    async fn a_socket_of_a_live_server_is_refused_and_one_of_a_dead_server_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let live = Admin::open(&path).unwrap();
        let error = format!("{:#}", Admin::open(&path).unwrap_err());
        assert!(error.contains("another server answers there"), "{error}");
        assert!(path.exists(), "it is still the live one's");
        drop(live);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as a killed server leaves it");
        drop(Admin::open(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        Admin::open(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn only_root_and_the_own_user_may_ask() {
        let own = own_user().unwrap();
        let (end, _other) = UnixStream::pair().unwrap();
        assert!(may_ask(&end, own));
        // Root may ask everybody.
        assert_eq!(may_ask(&end, own + 1), own == 0);
    }
}
