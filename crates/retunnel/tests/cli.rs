//! Runs the built binary as a user would: arguments in; exit code, stdout and stderr out.

#![expect(clippy::unwrap_used, reason = "a test stops at the first unexpected result")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// A temporary home and working directory, without the caller's settings.
struct Home(TempDir);

/// The result of a finished run.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_retunnel"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RETUNNEL_")) {
            command.env_remove(name);
        }
        command.env("HOME", self.0.path()).env_remove("XDG_DATA_HOME");
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        run(&mut self.command(arguments))
    }

    fn run_with_input(&self, arguments: &[&str], input: &str) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        ran(child.wait_with_output().unwrap())
    }
}

fn run(command: &mut Command) -> Ran {
    ran(command.output().unwrap())
}

fn ran(output: std::process::Output) -> Ran {
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    #[track_caller]
    fn ends_with(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn says(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "expected `{text}` in: {}", self.stderr);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one line: {}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// A running program, killed at the end of its test in every case.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Reads stderr up to the line with this text.
    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let before = seen.len();
            self.stderr.read_line(&mut seen).unwrap();
            assert!(seen.len() > before, "expected `{text}` in: {seen}");
        }
        seen
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Waits for the end. Returns the exit code and the rest of stderr.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of this machine where nothing listens.
fn closed_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}

#[test]
fn without_a_command_it_prints_help() {
    let home = Home::new();
    let ran = home.run(&[]);
    ran.ends_with(0);
    for part in ["Usage: retunnel", "http", "authtoken", "credits", "--json", "retunnel http 8080"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    assert!(home.run(&["--help"]).ends_with(0).stdout.contains("Usage: retunnel"));
    assert!(home.run(&["help"]).ends_with(0).stdout.contains("Usage: retunnel"));
    assert!(home.run(&["help", "http"]).ends_with(0).stdout.contains("--subdomain"));
    home.run(&["help", "nope"]).ends_with(2).says("no command `nope`");
    assert!(!exists(&home.path(".retunnel.conf")), "help changes nothing");
}

#[test]
fn version_in_every_form() {
    let home = Home::new();
    let version = env!("CARGO_PKG_VERSION");
    for words in [["version"], ["--version"], ["-V"]] {
        assert_eq!(home.run(&words).ends_with(0).stdout, format!("retunnel {version}\n"));
    }
    for words in [["--json", "version"], ["version", "--json"], ["--json", "--version"]] {
        assert_eq!(home.run(&words).ends_with(0).json(), serde_json::json!({ "version": version }));
    }
}

#[test]
fn credits_list_the_libraries() {
    let home = Home::new();
    let text = home.run(&["credits", "-q"]).ends_with(0).stdout.clone();
    assert!(text.lines().any(|line| line.starts_with("tokio 1.")), "{text}");
    for absent in ["retunnel", "tempfile", "proptest"] {
        assert!(!text.lines().any(|line| line.starts_with(absent)), "{absent} is not shipped by others with us");
    }
    let list = home.run(&["--json", "credits"]).ends_with(0).json();
    assert_eq!(list["libraries"].as_array().unwrap().len(), text.lines().count());
}

#[test]
fn usage_errors_end_with_2() {
    let home = Home::new();
    for words in [
        &["nope"][..],
        &["http"],
        &["http", "0"],
        &["http", "65536"],
        &["http", "word"],
        &["tcp", "22", "--remote-port", "0"],
        &["http", "80", "--auth", "nocolon"],
        &["http", "80", "--subdomain", "under_score"],
        &["http", "80", "--subdomain", "a", "--hostname", "b.test"],
        &["http", "80", "--log-level", "loud"],
        &["authtoken", "a", "--stdin"],
        &["config", "--show", "--path"],
        &["start"],
        &["start", "missing.yml"],
        &["config", "--check"],
    ] {
        let ran = home.run(words);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{words:?}: {}", ran.stderr);
        assert!(!ran.stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn row_50_empty_security_settings_are_errors() {
    let home = Home::new();
    let ran = run(home.command(&["http", "80"]).env("RETUNNEL_BASIC_AUTH", ""));
    ran.ends_with(2);
    home.write(".env", "RETUNNEL_BASIC_AUTH=\n");
    home.run(&["http", "80"]).ends_with(2).says("RETUNNEL_BASIC_AUTH");
    home.write(".env", "RETUNNEL_AUTH_TOKEN=''\n");
    home.run(&["http", "80"]).ends_with(2).says("RETUNNEL_AUTH_TOKEN");
}

#[test]
fn broken_dotenv_lines_of_other_programs_are_ignored_and_ours_stay_secret() {
    let home = Home::new();
    for other in ["OTHER=a 'b\n", "OTHER='it\nRETUNNEL_TUNNELS=[{\"a\" b}]\n", "nonsense\n"] {
        home.write(".env", other);
        home.run(&["http", "0"]).ends_with(2).says("local target");
    }
    fs::write(home.path(".env"), b"DB_PASSWORD=caf\xe9\n").unwrap();
    home.run(&["http", "0"]).ends_with(2).says("local target");
    fs::remove_file(home.path(".env")).unwrap();
    fs::create_dir(home.path(".env")).unwrap();
    home.run(&["http", "0"]).ends_with(2).says("local target");
    fs::remove_dir(home.path(".env")).unwrap();
    home.write(".env", "RETUNNEL_AUTH_TOKEN=very 'secret\n");
    let ran = home.run(&["http", "80"]);
    ran.ends_with(2).says(".env");
    assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
}

#[test]
fn authtoken_is_saved_and_never_shown() {
    let home = Home::new();
    let saved = |home: &Home| -> Value {
        serde_json::from_str(&fs::read_to_string(home.path(".retunnel.conf")).unwrap()).unwrap()
    };
    let ran = home.run(&["authtoken", "rt_first_0123456789"]);
    ran.ends_with(0);
    assert!(!(ran.stdout + &ran.stderr).contains("rt_first_"));
    assert_eq!(saved(&home), serde_json::json!({ "auth_token": "rt_first_0123456789" }));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(home.path(".retunnel.conf")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    home.write(".retunnel.conf", r#"{"auth_token": null, "theirs": [1]}"#);
    home.run_with_input(&["authtoken", "--stdin"], "rt_second_0123456789\n").ends_with(0);
    assert_eq!(saved(&home), serde_json::json!({ "auth_token": "rt_second_0123456789", "theirs": [1] }));
    let shown = home.run(&["config", "--show"]).ends_with(0).stdout.clone();
    assert!(shown.contains("****6789") && !shown.contains("rt_second_"), "{shown}");

    home.run(&["authtoken", ""]).ends_with(2);
    home.run_with_input(&["authtoken", "--stdin"], "").ends_with(2);
    home.run_with_input(&["authtoken"], "").ends_with(1);
    assert_eq!(saved(&home)["auth_token"], "rt_second_0123456789");
}

#[test]
fn row_46_a_broken_config_file_ends_with_78_and_stays() {
    let home = Home::new();
    for text in ["", "{\"auth_token\": \"rt_half", "[]"] {
        home.write(".retunnel.conf", text);
        for words in [&["http", "80"][..], &["config", "--show"]] {
            home.run(words).ends_with(78).says(".retunnel.conf");
        }
        assert_eq!(fs::read_to_string(home.path(".retunnel.conf")).unwrap(), text);
    }
    // Saving a token repairs the file, and keeps the broken one.
    home.write(".retunnel.conf", "{\"auth_token\": \"rt_half");
    home.run(&["authtoken", "rt_new_0123456789"]).ends_with(0).says(".retunnel.conf.corrupt-");
    assert!(fs::read_to_string(home.path(".retunnel.conf")).unwrap().contains("rt_new_0123456789"));
    let names = fs::read_dir(home.0.path()).unwrap().map(|entry| entry.unwrap().path());
    let kept = names.filter(|path| path.to_string_lossy().contains(".retunnel.conf.corrupt-")).collect::<Vec<_>>();
    assert_eq!(fs::read_to_string(&kept[0]).unwrap(), "{\"auth_token\": \"rt_half");
}

#[test]
fn dotenv_counts_for_every_variable_and_comes_after_the_environment() {
    let home = Home::new();
    home.write(".env", "RETUNNEL_QUIET=1\nRETUNNEL_BASIC_AUTH=nocolon\n");
    home.run(&["http", "80"]).ends_with(2).says("credentials");
    home.write(".env", "RETUNNEL_QUIET=1\n");
    let words = ["http", "80", "--server", "127.0.0.1:1", "--token", "x"];
    let mut quiet = Running::start(&mut home.command(&words));
    assert!(quiet.wait_for("retrying").starts_with("warning:"), "nothing but the warning");
    let mut loud = Running::start(
        home.command(&words).env("RETUNNEL_QUIET", "0").env("RETUNNEL_LOG_FILE", home.path("from-environment.log")),
    );
    loud.wait_for("Connecting to ReTunnel server...");
    loud.wait_for("retrying");
    assert!(exists(&home.path("from-environment.log")));
}

#[test]
fn variables_are_on_or_off_in_every_spelling() {
    let home = Home::new();
    let words = ["http", "80", "--server", "127.0.0.1:1", "--token", "x"];
    for name in ["RETUNNEL_NO_UI", "RETUNNEL_QUIET", "RETUNNEL_NO_INSPECT", "RETUNNEL_INSECURE"] {
        for value in ["1", "true", "yes", "ON", "0", "false", "No", "off", ""] {
            Running::start(home.command(&words).env(name, value)).wait_for("retrying");
        }
        let ran = run(home.command(&words).env(name, "perhaps"));
        ran.ends_with(2).says("expected 1, true, yes or on; or 0, false, no or off");
    }
    let mut loud = Running::start(home.command(&words).env("RETUNNEL_QUIET", "off"));
    loud.wait_for("Connecting to ReTunnel server...");
}

#[test]
fn words_of_other_programs_get_a_tip() {
    let home = Home::new();
    for (word, tip) in [
        ("8080", "`retunnel http 8080`"),
        (":8080", "`retunnel http :8080`"),
        ("localhost:3000", "`retunnel http localhost:3000`"),
        ("list", "http://127.0.0.1:4040"),
        ("status", "`retunnel diagnose`"),
        ("login", "`retunnel register`"),
        ("udp", "UDP is not supported"),
    ] {
        home.run(&[word]).ends_with(2).says(tip);
    }
    home.run(&["htp"]).ends_with(2).says("'http'");
}

#[test]
fn without_encryption_the_user_is_warned_and_other_machines_get_it_by_default() {
    let home = Home::new();
    let said = |server: &str| {
        let words = ["http", "80", "--server", server, "--token", "x"];
        Running::start(&mut home.command(&words)).wait_for("retrying")
    };
    let clear = said("http://tunnel.invalid:6400");
    assert!(clear.contains("the connection to http://tunnel.invalid:6400 is not encrypted"), "{clear}");
    let default = said("tunnel.invalid:6400");
    assert!(default.contains("(https://tunnel.invalid:6400, from --server)"), "{default}");
    assert!(!default.contains("not encrypted"), "{default}");
    assert!(!said("127.0.0.1:1").contains("not encrypted"), "it stays on this machine");
}

#[test]
fn config_shows_and_checks_files() {
    let home = Home::new();
    let path = home.run(&["config", "--path"]).ends_with(0).stdout.clone();
    assert_eq!(Path::new(path.trim_end()), home.path(".retunnel.conf"));
    let example = home.run(&["config", "--example"]).ends_with(0).stdout.clone();
    home.write("retunnel.yml", &example);
    home.run(&["config", "--check"]).ends_with(0).says("valid");
    home.write("bad.yml", "tunnels:\n  - name: a\n    protocol: http\n    local_prot: 80\n");
    home.run(&["config", "--check", "bad.yml"]).ends_with(2).says("local_prot");
    home.run(&["start", "bad.yml"]).ends_with(2).says("local_prot");
    home.write("empty.yml", "tunnels: []\n");
    for words in [&["start", "empty.yml"][..], &["config", "--check", "empty.yml"]] {
        home.run(words).ends_with(2).says("empty.yml: has no tunnels to open");
    }
    home.write("worse.yml", "server: a\ntunnels:\n  - name: a\n    protocol: http\n    local_port: 0\n");
    for words in [&["config", "--check", "worse.yml"][..], &["start", "worse.yml"]] {
        let ran = home.run(words);
        assert_eq!(
            ran.ends_with(2).stderr,
            "error: worse.yml has 2 errors\n\
             worse.yml:1:1: unknown key `server`; did you mean `server_addr`? known keys: server_addr, auth_token, region, \
             dialect, log_level, tunnels\n\
             worse.yml:5:17: tunnel `a`: `local_port`: expected a number from 1 to 65535 (got `0`)\n"
        );
        assert_eq!(ran.stdout, "");
    }
    let ran = home.run(&["config", "--check", "worse.yml", "--json"]);
    let report = ran.ends_with(2).json();
    assert_eq!((&report["valid"], &report["mistakes"][1]["line"]), (&Value::from(false), &Value::from(5)));
    assert_eq!(report["mistakes"][1]["column"], 17);
    home.write("one.yml", "tunnels: [{name: a, protocol: http, local_port: 80}]\n");
    assert_eq!(home.run(&["config", "--check", "one.yml"]).ends_with(0).stderr, "one.yml is valid: 1 tunnel\n");
    let report = home.run(&["config", "--check", "one.yml", "--json"]).ends_with(0).json();
    assert_eq!((&report["valid"], &report["tunnels"]), (&Value::from(true), &Value::from(1)));
    home.run(&["config", "--check", "missing.yml"]).ends_with(2).says("missing.yml");
    home.write("loud.yml", &format!("log_level: loud\n{example}"));
    home.run(&["start", "loud.yml"]).ends_with(2).says("log_level");
    home.run(&["start", "retunnel.yml", "nope"]).ends_with(2).says("no tunnel `nope`");
}

#[test]
fn the_named_server_comes_from_option_environment_dotenv_then_file() {
    let home = Home::new();
    let named = |command: &mut Command| {
        let mut running = Running::start(command);
        running.wait_for("Connecting to ReTunnel server...")
    };
    home.write(".retunnel.conf", r#"{"server_url": "ws://file.invalid:1"}"#);
    assert!(named(&mut home.command(&["http", "80"])).contains("file.invalid"));
    home.write(".env", "RETUNNEL_SERVER_ENDPOINT=dotenv.invalid:1\nRETUNNEL_AUTH_TOKEN=x\n");
    assert!(named(&mut home.command(&["http", "80"])).contains("dotenv.invalid"));
    let mut command = home.command(&["http", "80"]);
    assert!(named(command.env("RETUNNEL_SERVER_ENDPOINT", "environment.invalid:1")).contains("environment.invalid"));
    let mut command = home.command(&["http", "80", "--server", "option.invalid:1"]);
    assert!(named(command.env("RETUNNEL_SERVER_ENDPOINT", "environment.invalid:1")).contains("option.invalid"));
}

#[test]
fn an_unreachable_named_server_is_retried_and_ctrl_c_ends_it() {
    let home = Home::new();
    for signal in ["-INT", "-TERM"] {
        let mut client = Running::start(&mut home.command(&["http", "80", "--server", &closed_address()]));
        client.wait_for("retrying");
        client.signal(signal);
        assert_eq!(client.line(), "", "no result on stdout");
        let (code, rest) = client.end();
        assert_eq!(code, Some(0), "{rest}");
        assert!(rest.contains("Shutting down"), "{rest}");
    }
}

#[test]
fn too_many_registrations_end_with_75() {
    let home = Home::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let _ = socket.read(&mut head).unwrap();
        let body = r#"{"detail": "too many registrations"}"#;
        let head =
            "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 30\r\nConnection: close";
        write!(socket, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    });
    home.run(&["http", "80", "--server", &address]).ends_with(75).says("too many registrations");
}

/// A text in UTF-16, as Windows PowerShell writes it.
fn utf_16(text: &str) -> Vec<u8> {
    std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

#[test]
fn files_saved_on_windows_are_read() {
    let forms: [fn(&str) -> Vec<u8>; 4] = [
        |text| text.replace('\n', "\r\n").into(),
        |text| format!("\u{feff}{text}").into(),
        |text| format!("\u{feff}{}", text.replace('\n', "\r\n")).into(),
        |text| utf_16(&text.replace('\n', "\r\n")),
    ];
    for form in forms {
        let home = Home::new();
        let write = |name: &str, text: &str| fs::write(home.path(name), form(text)).unwrap();
        write("retunnel.yml", "tunnels:\n  - name: a\n    protocol: http\n    local_port: 80\n");
        home.run(&["config", "--check"]).ends_with(0);
        write(".retunnel.conf", "{\n\"server_url\": \"ws://file.invalid:1\"\n}\n");
        Running::start(&mut home.command(&["http", "80"])).wait_for("file.invalid:1");
        write(".env", "RETUNNEL_SERVER_ENDPOINT=dotenv.invalid:1\nRETUNNEL_AUTH_TOKEN=x\n");
        Running::start(&mut home.command(&["start"])).wait_for("dotenv.invalid:1");
        // Saving keeps what was there.
        home.run(&["authtoken", "rt_0123456789abcdef"]).ends_with(0);
        let saved = fs::read_to_string(home.path(".retunnel.conf")).unwrap();
        assert!(saved.contains("file.invalid") && saved.contains("rt_0123456789abcdef"), "{saved}");
    }
}

/// What moves the cursor or turns the text around: C0, DEL, C1, and the direction of the text.
const ATTACK: [char; 6] = ['\u{1b}', '\u{7}', '\u{7f}', '\u{9b}', '\u{202e}', '\u{2066}'];

#[test]
fn what_a_server_says_does_not_act_on_the_terminal() {
    let home = Home::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut head = [0; 4096];
            let _ = socket.read(&mut head).unwrap();
            let said = format!("stop{}here", ATTACK.iter().collect::<String>());
            let body = serde_json::json!({ "detail": said }).to_string();
            let head = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close";
            write!(socket, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    let run = home.run(&["http", "80", "--server", &address]);
    assert!(run.stderr.contains("stop??????here"), "{:?}", run.stderr);
    assert!(!run.stderr.contains(ATTACK), "{:?}", run.stderr);
}

#[cfg(feature = "server")]
mod with_server {
    use std::net::TcpStream;

    use super::*;

    fn server(home: &Home) -> (Running, String) {
        let mut command = home.command(&["server", "--listen", "127.0.0.1:0", "--domain", "example.test"]);
        let data = home.path("data");
        command.args(["--registration", "open", "--tcp-ports", "off", "--data-dir", data.to_str().unwrap()]);
        let mut server = Running::start(&mut command);
        let line = server.line();
        let address = line.strip_prefix("listening on http://").expect(&line).to_owned();
        (server, address)
    }

    /// A local service that answers every connection with `hello`.
    fn service() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap_or(0) == 1 {
                    head.push(byte[0]);
                }
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
            }
        });
        port
    }

    fn get(address: &str, host: &str) -> String {
        let mut socket = TcpStream::connect(address).unwrap();
        write!(socket, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn what_a_visitor_says_does_not_act_on_the_terminal_of_the_server() {
        for format in ["text", "json"] {
            let home = Home::new();
            let mut command = home.command(&["server", "--listen", "127.0.0.1:0", "--domain", "example.test"]);
            command.args(["--registration", "open", "--tcp-ports", "off", "--log-format", format]);
            command.args(["--data-dir", home.path("data").to_str().unwrap()]);
            let mut server = Running::start(&mut command);
            let address = server.line().strip_prefix("listening on http://").unwrap().to_owned();
            let mut socket = TcpStream::connect(&address).unwrap();
            let body = serde_json::json!({ "email": "ann\u{202e}\u{2066}@example.test" }).to_string();
            let head = format!("POST /api/v1/auth/register HTTP/1.1\r\nHost: {address}\r\nConnection: close");
            let head = format!("{head}\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
            write!(socket, "{head}\r\n\r\n{body}").unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            let seen = server.wait_for("account registered");
            server.signal("-TERM");
            let (_, rest) = server.end();
            let log = format!("{seen}{rest}");
            let escaped = if format == "json" { r"ann\u202e\u2066@example.test" } else { r"ann\u{202e}\u{2066}@" };
            assert!(log.contains(escaped) && !log.contains(ATTACK), "{log:?}");
        }
    }

    #[test]
    fn http_prints_json_serves_and_closes_in_order() {
        let home = Home::new();
        let (server, address) = server(&home);
        let port = service().to_string();
        let mut client =
            Running::start(&mut home.command(&["--json", "http", &port, "--server", &address, "--subdomain", "shop"]));
        let line: Value = serde_json::from_str(&client.line()).unwrap();
        let (_, server_port) = address.rsplit_once(':').unwrap();
        assert_eq!(line["url"], format!("http://shop.example.test:{server_port}"));
        assert_eq!(line["protocol"], "http");
        assert_eq!(line["local_port"].to_string(), port);
        assert_eq!(line["subdomain"], "shop");
        assert!(get(&address, "shop.example.test").ends_with("hello"));
        client.signal("-INT");
        assert_eq!(client.end(), (Some(0), String::new()), "--json is silent on stderr");
        server.signal("-TERM");
        let (code, rest) = server.end();
        assert_eq!(code, Some(0), "{rest}");
    }

    #[test]
    fn text_has_the_url_alone_on_stdout_and_the_rest_on_stderr() {
        let home = Home::new();
        let (_server, address) = server(&home);
        let port = service().to_string();
        let mut client =
            Running::start(&mut home.command(&["http", &port, "--server", &address, "-s", "app", "-a", "ann:secret"]));
        let url = client.line();
        assert!(url.starts_with("http://app.example.test:"), "{url}");
        client.wait_for("Connecting to ReTunnel server...");
        client.wait_for(&format!("Forwarding {url} -> localhost:{port}"));
        client.wait_for("Press Ctrl+C to stop");
        assert!(get(&address, "app.example.test").starts_with("HTTP/1.1 401 "));
        client.signal("-TERM");
        let (code, rest) = client.end();
        assert_eq!(code, Some(0), "{rest}");
        assert!(rest.contains("Shutting down...") && rest.contains("Tunnel closed."), "{rest}");
        assert!(exists(&home.path(".retunnel.conf")), "the new account's token is kept");
    }

    #[test]
    fn start_opens_what_it_can_and_reports_the_rest() {
        let home = Home::new();
        let (_server, address) = server(&home);
        let port = service();
        home.write(
            "retunnel.yml",
            &format!(
                "server_addr: ${{SERVER_FOR_TEST:{address}}}\ntunnels:\n\
                 - {{name: web, protocol: http, local_port: {port}, subdomain: web}}\n\
                 - {{name: ssh, protocol: tcp, local_port: 22}}\n\
                 - {{name: shop, protocol: http, local_port: {port}, subdomain: shop}}\n"
            ),
        );
        let mut client = Running::start(&mut home.command(&["start"]));
        assert!(client.line().starts_with("web=http://web.example.test:"));
        assert!(client.line().starts_with("shop=http://shop.example.test:"));
        client.wait_for("cannot open tunnel `ssh`");
        assert!(get(&address, "shop.example.test").ends_with("hello"));
        client.signal("-INT");
        assert_eq!(client.end().0, Some(0));

        let mut client = Running::start(&mut home.command(&["start", "retunnel.yml", "shop", "--json"]));
        let line: Value = serde_json::from_str(&client.line()).unwrap();
        assert_eq!(line["tunnels"][0]["name"], "shop");
        assert_eq!(line["tunnels"].as_array().unwrap().len(), 1);
        assert_eq!((&line["url"], &line["local_port"]), (&line["tunnels"][0]["url"], &Value::from(port)));
    }

    #[test]
    fn refusals_end_with_69_and_say_what_to_do() {
        let home = Home::new();
        let (_server, address) = server(&home);
        home.run(&["http", "80", "--server", &address, "--token", "rt_wrong"]).ends_with(69).says("authtoken");
        let mut first = Running::start(&mut home.command(&["http", "80", "--server", &address, "-s", "mine"]));
        first.line();
        let other = Home::new();
        other.run(&["http", "80", "--server", &address, "-s", "mine"]).ends_with(69).says("--subdomain");
        other.run(&["tcp", "80", "--server", &address]).ends_with(69);
    }

    #[test]
    fn server_options_come_from_flag_environment_then_file() {
        let home = Home::new();
        home.write("server.yml", "listen: 127.0.0.1:0\ndomain: file.test\nregistration: closed\n");
        let data = home.path("data");
        let mut command = home.command(&["--json", "server", "--config", "server.yml", "--registration", "open"]);
        command.env("RETUNNEL_SERVER_DOMAIN", "environment.test").env("RETUNNEL_SERVER_DATA_DIR", &data);
        let mut server = Running::start(&mut command);
        let line: Value = serde_json::from_str(&server.line()).unwrap();
        assert_eq!(line["domain"], "environment.test");
        assert_eq!(Path::new(line["data_dir"].as_str().unwrap()), data);
        home.run(&["config", "--check-server", "server.yml"]).ends_with(0).says("server.yml is valid");
        home.write(
            "server.yml",
            "listne: 127.0.0.1:0\ndomain: 'a b'\nregistration: maybe\ntcp-ports: [1]\nlimits:\n  hold_lease: soon\n  hold_leese: 1\n",
        );
        for words in [&["server", "--config", "server.yml"][..], &["config", "--check-server", "server.yml"]] {
            let ran = home.run(words);
            for part in [
                "server.yml has 6 errors",
                "server.yml:1:1: unknown key `listne`; did you mean `listen`?",
                "server.yml:2:9: `domain`: expected a domain, for example tunnel.example.com (got `a b`)",
                "server.yml:3:15: `registration`: expected open, invite or closed (got `maybe`)",
                "server.yml:4:12: `tcp-ports`: invalid type",
                "server.yml:6:15: limits: `hold_lease`: invalid type",
                "server.yml:7:3: limits: unknown key `hold_leese`; did you mean `hold_lease`?",
            ] {
                ran.ends_with(2).says(part);
            }
        }
        home.run(&["server", "--listen", "nowhere"]).ends_with(2).says("listen");
        home.run(&["server", "--registration", "maybe"]).ends_with(2).says("registration");
    }

    #[test]
    fn the_access_log_has_every_answer_at_every_log_level() {
        let home = Home::new();
        let data = home.path("data");
        let mut command =
            home.command(&["--log-level", "error", "server", "--listen", "127.0.0.1:0", "--tcp-ports", "off"]);
        let mut server = Running::start(command.env("RETUNNEL_SERVER_ACCESS_LOG", "yes").args([
            "--domain",
            "example.test",
            "--data-dir",
            data.to_str().unwrap(),
        ]));
        let address = server.line().strip_prefix("listening on http://").unwrap().to_owned();
        let port = service().to_string();
        let words =
            ["http", &port, "--server", &address, "-s", "app", "--auth", "ann:secret-word", "--log-level", "debug"];
        let mut client = Running::start(&mut home.command(&words));
        client.line();
        let with_password = "app.example.test\r\nAuthorization: Basic YW5uOnNlY3JldC13b3Jk";
        for (host, part) in [
            ("nobody.example.test", "tunnel_not_found"),
            ("a b", "bad_request"),
            ("app.example.test", "unauthorized"),
            (with_password, "status=200"),
        ] {
            get(&address, host);
            let line = server.wait_for(part);
            assert!(!line.contains("YW5u") && !line.contains("secret-word"), "row 43: {line}");
        }
        client.signal("-INT");
        let (code, said) = client.end();
        assert_eq!(code, Some(0));
        // Row 43: neither the password nor the token, at any level.
        let saved: Value = serde_json::from_str(&fs::read_to_string(home.path(".retunnel.conf")).unwrap()).unwrap();
        let token = saved["tokens"][&address].as_str().unwrap();
        assert!(!said.contains(token) && !said.contains("secret-word") && !said.contains("YW5u"), "{said}");
    }

    #[test]
    fn a_service_that_does_not_run_yet_is_reported_when_the_tunnel_opens() {
        let home = Home::new();
        let (_server, address) = server(&home);
        let port = closed_address().rsplit_once(':').unwrap().1.to_owned();
        let mut client = Running::start(&mut home.command(&["http", &port, "--server", &address]));
        client.wait_for(&format!("nothing listens at localhost:{port} yet"));
        let port = service().to_string();
        let mut client = Running::start(&mut home.command(&["http", &port, "--server", &address]));
        let said = client.wait_for("Press Ctrl+C");
        assert!(!said.contains("nothing listens"), "{said}");
    }

    #[test]
    fn https_to_a_server_without_tls_fails_at_once() {
        let home = Home::new();
        let (_server, address) = server(&home);
        let ran = home.run(&["http", "80", "--token", "x", "--server", &format!("https://{address}")]);
        ran.ends_with(69).says(&format!("http://{address}"));
    }

    #[test]
    fn demo_once_shows_a_request() {
        let home = Home::new();
        let ran = home.run(&["demo", "--once"]);
        ran.ends_with(0).says("200 OK");
        assert!(ran.stdout.starts_with("http://"), "{}", ran.stdout);
        assert_eq!(home.run(&["demo", "--once", "--json"]).ends_with(0).json()["status"], 200);
        let port = closed_address().rsplit_once(':').unwrap().1.to_owned();
        home.run(&["demo", "--once", &port]).ends_with(1).says("502");
        assert!(!exists(&home.path(".retunnel.conf")), "the demo leaves nothing behind");
    }
}
