//! The keys of the live view.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    model::{Model, Tab},
    screen::Screen,
};

/// Lines of a page up or down.
const PAGE: isize = 10;

/// Handles a key. Returns `false` when the user quits.
pub(crate) fn press(model: &mut Model, key: KeyEvent) -> bool {
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
        KeyCode::Char(digit @ '1'..='4') => model.go_to(Tab::ALL[digit as usize - '1' as usize]),
        KeyCode::Down | KeyCode::Char('j') => model.scroll(1),
        KeyCode::Up | KeyCode::Char('k') => model.scroll(-1),
        KeyCode::PageDown => model.scroll(PAGE),
        KeyCode::PageUp => model.scroll(-PAGE),
        KeyCode::Home => model.scroll(isize::MIN),
        KeyCode::End => model.scroll(isize::MAX),
        KeyCode::Char('/') => {
            model.go_to(Tab::Requests);
            model.typing = true;
        }
        KeyCode::Char('r') => model.qr = !model.qr,
        KeyCode::Char('c') => {
            let url = model.tunnel().map(|tunnel| tunnel.url.clone());
            match url.as_deref().map(Screen::copy) {
                Some(Ok(())) => model.flash("Asked the terminal to copy the URL."),
                _ => model.flash("Cannot copy the URL."),
            }
        }
        KeyCode::Char('o') => open(model, model.tunnel().map(|tunnel| tunnel.url.clone())),
        KeyCode::Char('i') | KeyCode::Enter => open(model, model.inspector.clone()),
        _ => {}
    }
    true
}

/// Opens a URL in the browser.
fn open(model: &mut Model, url: Option<String>) {
    match url.map(|url| (open::that_detached(&url), url)) {
        Some((Ok(()), url)) => model.flash(format!("Opening {url}")),
        Some((Err(error), url)) => model.flash(format!("Cannot start a browser ({error}). Open {url} yourself.")),
        None => {}
    }
}
