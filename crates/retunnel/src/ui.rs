//! The live view: what the tunnels do now, redrawn a few times a second.

mod draw;
pub(crate) mod look;
mod model;
mod screen;
pub(crate) mod waiting;

use std::time::Duration;

use anyhow::Result;
use crossterm::event::{Event as Input, EventStream, KeyCode, KeyEvent, KeyModifiers};
use futures_util::StreamExt;
use retunnel_client::Client;
use tokio::time::{MissedTickBehavior, interval};

use self::{
    look::Look,
    model::{Model, Tab, Weight},
    screen::Screen,
};
use crate::commands::{
    signals::Signals,
    tunnels::{Opened, Watcher, ended},
};

/// Time between two pictures.
const REDRAW: Duration = Duration::from_millis(250);
/// Lines of a page up or down.
const PAGE: isize = 10;

/// Shows the view until the user or the server ends it. The terminal is given back in every case.
pub(crate) async fn live(
    client: &Client,
    opened: &mut Opened,
    watcher: &mut Watcher,
    signals: &mut Signals,
) -> Result<()> {
    watcher.silent = true;
    let result = run(client, opened, watcher, signals).await;
    watcher.silent = false;
    result
}

async fn run(client: &Client, opened: &mut Opened, watcher: &mut Watcher, signals: &mut Signals) -> Result<()> {
    let mut model = Model::new();
    model.inspector.clone_from(&watcher.inspector);
    for tunnel in &opened.tunnels {
        model.note(Weight::Good, format!("{} is open", tunnel.url()));
    }
    if let Some(trouble) = &watcher.trouble {
        model.note(Weight::Bad, trouble.clone());
    }
    let look = Look::of_environment();
    let mut screen = Screen::take()?;
    let mut input = EventStream::new();
    let mut tick = interval(REDRAW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Every arm is cancel-safe.
        tokio::select! {
            _ = tick.tick() => {}
            event = watcher.events.next() => match event {
                Some(event) => {
                    model.happened(&event);
                    if let Some(hint) = watcher.handle(event) {
                        model.note(Weight::Note, hint);
                    }
                    // Many may come at once; the next picture shows them all.
                    continue;
                }
                None => return Ok(()),
            },
            key = input.next() => match key {
                Some(Ok(Input::Key(key))) if key.is_press() => {
                    if !pressed(&mut model, key) {
                        return Ok(());
                    }
                }
                Some(Ok(_)) => {}
                // The terminal is gone.
                Some(Err(_)) | None => return Ok(()),
            },
            step = opened.next() => if let Some(report) = opened.step(step?, watcher) {
                model.reported(&report);
            },
            cause = client.ended() => return Err(ended(client, cause).await),
            () = signals.next() => return Ok(()),
        }
        refresh(&mut model, client);
        if screen.draw(|frame| draw::draw(frame, &model, look)).is_err() {
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
    model.count(client.stats());
    model.show(client.tunnels());
}

/// Does what a key stands for; says whether to go on.
fn pressed(model: &mut Model, key: KeyEvent) -> bool {
    let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
    if with_control && matches!(key.code, KeyCode::Char('c' | 'd')) {
        return false;
    }
    if model.typing {
        match key.code {
            KeyCode::Enter => model.typing = false,
            KeyCode::Esc => {
                model.typing = false;
                model.filter.clear();
            }
            KeyCode::Backspace => model.type_filter(None),
            KeyCode::Char(character) if !with_control => model.type_filter(Some(character)),
            _ => {}
        }
        return true;
    }
    match key.code {
        KeyCode::Char('q') => return false,
        KeyCode::Esc if model.qr => model.qr = false,
        KeyCode::Esc => model.filter.clear(),
        KeyCode::Tab | KeyCode::Right => model.next_tab(1),
        KeyCode::BackTab | KeyCode::Left => model.next_tab(Tab::ALL.len() - 1),
        KeyCode::Char(digit @ '1'..='4') => model.go(Tab::ALL[digit as usize - '1' as usize]),
        KeyCode::Down | KeyCode::Char('j') => model.scroll(1),
        KeyCode::Up | KeyCode::Char('k') => model.scroll(-1),
        KeyCode::PageDown => model.scroll(PAGE),
        KeyCode::PageUp => model.scroll(-PAGE),
        KeyCode::Home => model.scroll(isize::MIN),
        KeyCode::End => model.scroll(isize::MAX),
        KeyCode::Char('/') => {
            model.go(Tab::Requests);
            model.typing = true;
        }
        KeyCode::Char('r') => model.qr = !model.qr,
        KeyCode::Char('c') => {
            let url = model.tunnel().map(|tunnel| tunnel.url.clone());
            match url.as_deref().map(Screen::copy) {
                Some(Ok(())) => model.flash("The terminal was asked to copy the URL."),
                _ => model.flash("The URL could not be copied."),
            }
        }
        KeyCode::Char('o') => open(model, model.tunnel().map(|tunnel| tunnel.url.clone())),
        KeyCode::Char('i') | KeyCode::Enter => open(model, model.inspector.clone()),
        _ => {}
    }
    true
}

fn open(model: &mut Model, url: Option<String>) {
    match url.map(|url| (open::that_detached(&url), url)) {
        Some((Ok(()), url)) => model.flash(format!("Opening {url}")),
        Some((Err(error), url)) => model.flash(format!("No browser could be started ({error}); open {url} yourself")),
        None => {}
    }
}
