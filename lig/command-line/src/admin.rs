//! The admin socket of a daemon: one line of JSON asks, one line of JSON answers.
//!
//! Only root and the daemon's own user may ask: the socket file has mode 0600, and whoever connects
//! is looked at, because the file is there a moment before it has that mode. Connections are served
//! beside the daemon's loop, which gets nothing but whole, valid requests.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// A request, and where its answer goes.
#[derive(Debug)]
pub struct Question<R> {
    /// What is asked.
    pub request: R,
    answer: oneshot::Sender<Value>,
}

impl<R> Question<R> {
    /// Answers; whoever asked may have left.
    pub fn answer(self, answer: Value) {
        drop(self.answer.send(answer));
    }

    /// Says that it cannot be done, and why.
    pub fn refuse(self, why: &str) {
        self.answer(json!({ "error": why }));
    }
}

/// The socket, and the questions that came through it. The file goes when this is dropped.
#[derive(Debug)]
pub struct Admin<R> {
    /// The file, as long as it is ours.
    path: Option<PathBuf>,
    questions: mpsc::Receiver<Question<R>>,
    /// The task that accepts connections; it ends with those that are open.
    accepting: JoinSet<JoinSet<()>>,
}

impl<R: DeserializeOwned + Send + 'static> Admin<R> {
    /// Opens the socket at `path`, for requests of at most so many bytes. A file that a killed daemon
    /// left is replaced.
    ///
    /// # Errors
    /// A running daemon answers there, or the file cannot be made.
    pub fn open(path: &Path, longest: u64) -> Result<Self> {
        let listener = listen(path).with_context(|| format!("admin socket {}", path.display()))?;
        let own = own_user().context("cannot tell who may use the admin socket")?;
        let (sender, questions) = mpsc::channel(CONNECTIONS);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, own, longest, sender));
        Ok(Self {
            path: Some(path.to_owned()),
            questions,
            accepting,
        })
    }

    /// Waits for the next question. Cancelling loses nothing.
    pub async fn next(&mut self) -> Question<R> {
        match self.questions.recv().await {
            Some(question) => question,
            None => std::future::pending().await,
        }
    }

    /// Makes room for the next daemon: nobody can connect any more. Questions that were taken can
    /// still be answered, until what this returns is told to end.
    pub async fn shut(mut self) -> Farewell {
        // The file first: the next daemon may make another one as soon as nobody listens here.
        self.remove_file();
        self.questions.close();
        while let Ok(question) = self.questions.try_recv() {
            question.refuse(STOPPING);
        }
        let open = self.accepting.join_next().await;
        Farewell(open.and_then(Result::ok).unwrap_or_default())
    }
}

impl<R> Admin<R> {
    fn remove_file(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = fs::remove_file(&path)
            && error.kind() != ErrorKind::NotFound
        {
            warn!(path = %path.display(), %error, "admin socket not removed");
        }
    }
}

impl<R> Drop for Admin<R> {
    fn drop(&mut self) {
        self.remove_file();
    }
}

/// The connections that are left of a closed socket.
#[derive(Debug)]
pub struct Farewell(JoinSet<()>);

impl Farewell {
    /// Leaves answers that were given a moment to get through.
    pub async fn end(mut self) {
        let ended = async { while self.0.join_next().await.is_some() {} };
        if timeout(FAREWELL, ended).await.is_err() {
            debug!("an admin connection was cut off");
        }
    }
}

/// The user that this process acts as: the one at both ends of a connection to itself.
fn own_user() -> io::Result<u32> {
    let (end, _other) = UnixStream::pair()?;
    Ok(end.peer_cred()?.uid())
}

/// Whether whoever is at the other end of `stream` may ask a daemon of the user `own`.
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
            "another daemon answers there; stop that one, or give this one another `admin_socket`"
        ),
        // Nobody listens: a killed daemon has left it.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            ensure!(
                is_socket,
                "there is a file that is no socket; remove it, or set another `admin_socket`"
            );
            fs::remove_file(path)?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error)
                .context("cannot be used; remove what is there, or set another `admin_socket`");
        }
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves connections of root and the user `own` until nobody takes questions any more; returns
/// those that are open.
async fn accept<R: DeserializeOwned + Send + 'static>(
    listener: UnixListener,
    own: u32,
    longest: u64,
    questions: mpsc::Sender<Question<R>>,
) -> JoinSet<()> {
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
                if let Err(error) = serve(stream, longest, questions).await {
                    debug!(%error, "admin connection");
                }
                drop(permit);
            });
        }
        while open.try_join_next().is_some() {}
    }
    open
}

/// Reads one request and writes its answer.
async fn serve<R: DeserializeOwned>(
    stream: UnixStream,
    longest: u64,
    questions: mpsc::Sender<Question<R>>,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut limited = BufReader::new(read.take(longest));
    let reading = limited.read_until(b'\n', &mut line);
    timeout(REQUEST_WAIT, reading).await??;
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => pass_on(request, &questions).await,
        Err(error) => json!({ "error": format!("no request of this version: {error}") }),
    };
    let mut bytes = answer.to_string().into_bytes();
    bytes.push(b'\n');
    timeout(ANSWER_WAIT, write.write_all(&bytes)).await?
}

async fn pass_on<R>(request: R, questions: &mpsc::Sender<Question<R>>) -> Value {
    let (answer, answered) = oneshot::channel();
    let question = Question { request, answer };
    let stopping = || json!({ "error": STOPPING });
    if questions.send(question).await.is_err() {
        return stopping();
    }
    answered.await.unwrap_or_else(|_| stopping())
}

/// Asks the daemon at `socket`, which errors call `whom`, and waits for its answer; `None` if nobody
/// listens there.
///
/// # Errors
/// The socket may not be opened, the daemon does not answer within `wait`, or it refuses.
pub fn ask(
    socket: &Path,
    whom: &str,
    request: &impl Serialize,
    wait: Duration,
) -> Result<Option<Value>> {
    let at = || format!("{whom} at {}", socket.display());
    let mut stream = match BlockingStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if NOBODY.contains(&error.kind()) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(anyhow!("not permitted; run as root")).with_context(at);
        }
        Err(error) => return Err(error).with_context(at),
    };
    stream.set_read_timeout(Some(wait))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(at)?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("{}: no answer; see its log", at()))?;
    let answer: Value = serde_json::from_slice(&answer)
        .with_context(|| format!("{}: its answer was cut off; see its log", at()))?;
    if let Some(error) = answer.get("error") {
        bail!("{}", error.as_str().unwrap_or("it refuses"));
    }
    Ok(Some(answer))
}

/// What it looks like when no daemon listens at a socket.
const NOBODY: [ErrorKind; 2] = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
/// What questions get that nobody takes any more.
const STOPPING: &str = "the daemon is stopping";
/// How long to wait when a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Connections served at a time.
const CONNECTIONS: usize = 8;
/// How long a request may take to arrive.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How long an answer may take to be read.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long open connections may take at the end.
const FAREWELL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
    enum Request {
        Trace { eid: String },
        Stop { purge: bool },
    }

    fn open(path: &Path) -> Result<Admin<Request>> {
        Admin::open(path, 4_096)
    }

    async fn exchange(path: &Path, line: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(line.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        // What was not read of a request that is too long resets the connection.
        drop(stream.read_to_string(&mut answer).await);
        answer
    }

    #[tokio::test]
    async fn a_request_gets_its_answer_and_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let mut admin = open(&path).unwrap();
        for (path, wanted) in [(path.as_path(), 0o600), (path.parent().unwrap(), 0o700)] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, wanted, "{}", path.display());
        }
        let asked = path.clone();
        let client = tokio::spawn(async move {
            exchange(&asked, "{\"command\":\"trace\",\"eid\":\"10.0.0.2\"}\n").await
        });
        let question = admin.next().await;
        let eid = "10.0.0.2".to_owned();
        assert_eq!(question.request, Request::Trace { eid });
        question.answer(json!({ "way": 1 }));
        assert_eq!(client.await.unwrap(), "{\"way\":1}\n");
        admin.shut().await.end().await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_without_bothering_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let admin = open(&path).unwrap();
        for line in ["", "\n", "status\n", "{\"command\":\"reboot\"}\n"] {
            let answer = exchange(&path, line).await;
            assert!(answer.contains("no request of this version"), "{answer}");
        }
        exchange(&path, &"x".repeat(10_000)).await;
        let next = exchange(&path, "\n").await;
        assert!(
            next.contains("error"),
            "a long request harms nobody: {next}"
        );
        admin.shut().await.end().await;
    }

    #[tokio::test]
    async fn the_answer_to_a_stop_gets_through_while_the_next_daemon_starts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let mut admin = open(&path).unwrap();
        let asked = path.clone();
        let client = tokio::spawn(async move {
            exchange(&asked, "{\"command\":\"stop\",\"purge\":true}\n").await
        });
        let question = admin.next().await;
        let farewell = admin.shut().await;
        assert!(!path.exists());
        let next = open(&path).unwrap();
        question.answer(json!({ "stopped": true }));
        farewell.end().await;
        assert_eq!(client.await.unwrap(), "{\"stopped\":true}\n");
        assert!(path.exists(), "it is the next one's");
        next.shut().await.end().await;
    }

    #[tokio::test]
    async fn only_root_and_the_own_user_may_ask() {
        let own = own_user().unwrap();
        let (end, _other) = UnixStream::pair().unwrap();
        assert!(may_ask(&end, own));
        // Root may ask everybody.
        assert_eq!(may_ask(&end, own + 1), own == 0);
    }

    #[tokio::test]
    async fn a_socket_of_a_live_daemon_is_refused_and_one_of_a_dead_daemon_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let live = open(&path).unwrap();
        let error = format!("{:#}", open(&path).unwrap_err());
        assert!(error.contains("another daemon answers there"), "{error}");
        assert!(path.exists(), "it is still the live one's");
        live.shut().await.end().await;
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as a killed daemon leaves it");
        open(&path).unwrap().shut().await.end().await;
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        fs::write(&path, "precious").unwrap();
        open(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
