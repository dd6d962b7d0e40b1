//! Connects the live view with the client, the keyboard and the file of the tunnels.

use std::time::Duration;

use anyhow::Result;
use crossterm::event::{Event as Input, EventStream};
use futures_util::StreamExt;
use retunnel_client::Client;
use tokio::time::{MissedTickBehavior, interval};

use super::{handler::EventHandler, open::OpenTunnels};
use crate::{
    commands::{reload::Report, signals::Signals},
    ui::{
        draw::draw,
        keys::press,
        model::{Model, Severity},
        screen::Screen,
        theme::Theme,
    },
};

/// Time between two frames.
const REDRAW: Duration = Duration::from_millis(250);

/// Shows the view until the user or the server ends it. The terminal is restored in every case.
pub(super) async fn run(
    client: &Client,
    tunnels: &mut OpenTunnels,
    handler: &mut EventHandler,
    signals: &mut Signals,
) -> Result<()> {
    handler.silent = true;
    let result = show(client, tunnels, handler, signals).await;
    handler.silent = false;
    result
}

async fn show(
    client: &Client,
    tunnels: &mut OpenTunnels,
    handler: &mut EventHandler,
    signals: &mut Signals,
) -> Result<()> {
    let mut model = Model::new();
    model.inspector.clone_from(&handler.inspector);
    for tunnel in &tunnels.tunnels {
        model.note(Severity::Good, format!("{} is open", tunnel.url()));
    }
    if let Some(trouble) = &handler.trouble {
        model.note(Severity::Bad, trouble.clone());
    }
    let theme = Theme::from_environment();
    let mut screen = Screen::enter()?;
    let mut input = EventStream::new();
    let mut tick = interval(REDRAW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Every arm is cancel-safe.
        tokio::select! {
            _ = tick.tick() => {}
            event = handler.events.next() => match event {
                Some(event) => {
                    model.handle(&event);
                    if let Some(hint) = handler.handle(event) {
                        model.note(Severity::Info, hint);
                    }
                    // Many events may come at once; the next frame shows them all.
                    continue;
                }
                None => return Ok(()),
            },
            key = input.next() => match key {
                Some(Ok(Input::Key(key))) if key.is_press() => {
                    if !press(&mut model, key) {
                        return Ok(());
                    }
                }
                Some(Ok(_)) => {}
                // The terminal is gone.
                Some(Err(_)) | None => return Ok(()),
            },
            step = tunnels.next() => if let Some(report) = tunnels.apply(step?, handler) {
                show_reload(&mut model, &report);
            },
            cause = client.ended() => return Err(cause.into()),
            () = signals.next() => return Ok(()),
        }
        refresh(&mut model, client);
        if screen.draw(|frame| draw(frame, &model, theme)).is_err() {
            // The terminal is gone.
            return Ok(());
        }
    }
}

fn refresh(model: &mut Model, client: &Client) {
    if let Some(session) = client.session() {
        (model.server, model.account) = (session.server, session.account);
    }
    model.latency = client.latency();
    model.set_stats(client.stats());
    model.set_tunnels(client.tunnels());
}

/// Shows what a changed file did.
fn show_reload(model: &mut Model, report: &Report) {
    let severity = if report.is_failure { Severity::Bad } else { Severity::Info };
    // Events are shown newest first.
    for line in report.lines.iter().rev() {
        model.note(severity, line.clone());
    }
    if report.is_applied {
        model.remove_closed();
    }
    if report.event.is_some() {
        model.file_trouble = report.is_failure.then(|| report.lines.join("; "));
    }
}
