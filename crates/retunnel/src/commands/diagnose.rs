//! `retunnel diagnose`: checks the connection to the server step by step.

mod advice;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use owo_colors::OwoColorize;
use retunnel_client::{
    LocalTarget,
    diagnose::{Check, Outcome, Problem, Step},
};
use retunnel_config::TunnelsFile;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    args::{DiagnoseArgs, Global},
    commands::{diagnostics, logging, signals::Signals, watch},
    exit::{self, DiagnosisError, Usage},
    output::Output,
    settings::{FromFile, Settings},
    ui::theme::Theme,
    variables::Variables,
};

/// The tunnels file that is read if it exists and nothing else is given.
const TUNNELS_FILE: &str = "retunnel.yml";
/// Maximum number of local services to check.
const MAX_LOCALS: usize = 16;
/// Column where the text of a check starts.
const INDENT: usize = 26;

pub(crate) fn run(args: DiagnoseArgs, global: &Global, variables: &Variables, output: Output) -> Result<()> {
    logging::start(global, variables, "warn", false, false)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let mut report = Report::new(output);
        tokio::select! {
            result = check_all(args, global, variables, &mut report) => result,
            () = signals.next() => Err(DiagnosisError::Interrupted.into()),
        }
    });
    // A pending name lookup must not delay the exit.
    runtime.shutdown_background();
    result
}

async fn check_all(args: DiagnoseArgs, global: &Global, variables: &Variables, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let plan = Plan::new(&args, global, variables, report.output);
    let (outcome, found, details) = match &plan {
        Ok(plan) => {
            report.begin(&plan.settings.identity.server.to_string());
            let sources = &plan.settings.sources;
            let found: Vec<String> = sources.iter().map(ToString::to_string).collect();
            let details = sources
                .iter()
                .map(|source| json!({ "setting": source.setting, "value": source.value, "from": source.from }));
            (Outcome::Fine, found.join("; "), json!({ "settings": details.collect::<Vec<_>>() }))
        }
        Err(error) => (Outcome::Failed(Problem::ConfigurationInvalid), exit::text(error), json!({})),
    };
    report.add(Check::new(Step::Configuration, outcome, began.elapsed(), found, details));
    let Plan { settings, locals } = match plan {
        Ok(plan) => plan,
        Err(error) => {
            report.end();
            return Err(error);
        }
    };
    settings.builder.diagnose(|check| report.add(check)).await;
    for target in locals.iter().take(MAX_LOCALS) {
        report.add(settings.builder.diagnose_local(target).await);
    }
    report.end();
    let failed = report.steps(|outcome| matches!(outcome, Outcome::Failed(_)));
    if failed.is_empty() { Ok(()) } else { Err(DiagnosisError::Failed(failed.join(", ")).into()) }
}

/// What to check: the connection that `http` or `start` would make here, and local services.
struct Plan {
    settings: Settings,
    locals: Vec<LocalTarget>,
}

impl Plan {
    fn new(args: &DiagnoseArgs, global: &Global, variables: &Variables, output: Output) -> Result<Self> {
        let mut locals = Vec::new();
        for target in &args.targets {
            locals.push(target.parse::<LocalTarget>()?);
        }
        let path = args.file.clone().or_else(|| {
            let is_there = args.targets.is_empty() && Path::new(TUNNELS_FILE).exists();
            is_there.then(|| PathBuf::from(TUNNELS_FILE))
        });
        let mut tunnels = TunnelsFile::default();
        if let Some(path) = &path {
            let shown = path.display();
            let text = watch::read(path).map_err(|error| Usage(format!("cannot read {shown}: {error}")))?;
            tunnels = TunnelsFile::parse(&text, |name| variables.for_tunnels_file(name))
                .map_err(|diagnostics| diagnostics::invalid(path, &diagnostics))?;
            for tunnel in &tunnels.tunnels {
                locals.push(tunnel.spec()?.target().clone());
            }
        }
        let file = FromFile {
            path: path.as_deref(),
            server: tunnels.server_addr.as_deref(),
            token: tunnels.auth_token.as_deref(),
            dialect: tunnels.dialect.as_deref(),
        };
        Ok(Self { settings: Settings::new(&args.connection, variables, file, global, output)?, locals })
    }
}

/// Prints checks and collects them.
struct Report {
    output: Output,
    theme: Theme,
    /// Columns of the terminal; `None` if lines may have any length.
    width: Option<usize>,
    server: Option<String>,
    began: Instant,
    checks: Vec<Check>,
}

impl Report {
    fn new(output: Output) -> Self {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
        let width = is_terminal.then(|| crossterm::terminal::size().map_or(80, |(columns, _)| usize::from(columns)));
        Self {
            output,
            theme: Theme::from_environment(),
            width,
            server: None,
            began: Instant::now(),
            checks: Vec::new(),
        }
    }

    fn begin(&mut self, server: &str) {
        self.server = Some(server.to_owned());
        if !self.output.json {
            let server = self.theme.safe(server);
            self.output.styled(&format!("Checking the connection to {}", server.bold()));
        }
    }

    fn add(&mut self, check: Check) {
        if !self.output.json {
            self.print(&check);
        }
        self.checks.push(check);
    }

    fn print(&self, check: &Check) {
        let unicode = self.theme.unicode;
        let mark = match check.outcome {
            Outcome::Fine => (if unicode { "✓" } else { "+" }).green().to_string(),
            Outcome::Warning(_) => "!".yellow().bold().to_string(),
            Outcome::Failed(_) => (if unicode { "✗" } else { "x" }).red().bold().to_string(),
            Outcome::NotChecked => "-".dimmed().to_string(),
        };
        let took = if check.outcome == Outcome::NotChecked { String::new() } else { time(check.took) };
        let found = self.wrapped(&self.theme.safe(&check.found));
        self.output.styled(&format!("{mark} {:<13} {took:>8}  {found}", check.step.as_str()));
        if let Some(problem) = check.outcome.problem() {
            let arrow = self.theme.arrow();
            let next = self.wrapped(&format!("{arrow} {} [{}]", advice::next(problem), problem.as_str()));
            self.output.styled(&format!("{:INDENT$}{}", "", next.cyan()));
        }
    }

    /// Wraps text between words to fit its column.
    fn wrapped(&self, text: &str) -> String {
        let Some(room) = self.width.and_then(|width| width.checked_sub(INDENT)).filter(|room| *room >= 20) else {
            return text.to_owned();
        };
        let mut out = String::new();
        let mut column = 0;
        for word in text.split(' ') {
            let length = word.chars().count();
            if column > 0 && column + 1 + length > room {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', INDENT));
                column = 0;
            } else if column > 0 {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += length;
        }
        out
    }

    fn steps(&self, matches: impl Fn(Outcome) -> bool) -> Vec<&'static str> {
        self.checks.iter().filter(|check| matches(check.outcome)).map(|check| check.step.as_str()).collect()
    }

    fn end(&self) {
        let failed = self.steps(|outcome| matches!(outcome, Outcome::Failed(_)));
        let warned = self.steps(|outcome| matches!(outcome, Outcome::Warning(_)));
        if self.output.json {
            return self.output.json(&json!({
                "ok": failed.is_empty(),
                "server": self.server,
                "version": retunnel_client::VERSION,
                "failed": failed,
                "warnings": warned,
                "took_ms": milliseconds(self.began.elapsed()),
                "checks": self.checks.iter().map(describe).collect::<Vec<_>>(),
            }));
        }
        if failed.is_empty() && warned.is_empty() {
            self.output.result("All checks passed.");
        } else if failed.is_empty() {
            self.output.result(&format!("Tunnels work. Warnings: {}", warned.join(", ")));
        }
    }
}

fn describe(check: &Check) -> Value {
    let problem = check.outcome.problem();
    json!({
        "check": check.step.as_str(),
        "status": match check.outcome {
            Outcome::Fine => "ok",
            Outcome::Warning(_) => "warning",
            Outcome::Failed(_) => "failed",
            Outcome::NotChecked => "not_checked",
        },
        "code": problem.map(Problem::as_str),
        "found": check.found,
        "next": problem.map(advice::next),
        "took_ms": milliseconds(check.took),
        "details": check.details,
    })
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

fn time(took: Duration) -> String {
    if took < Duration::from_secs(1) {
        format!("{:.1} ms", milliseconds(took))
    } else {
        format!("{:.1} s", took.as_secs_f64())
    }
}
