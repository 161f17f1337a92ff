//! The screen of `status --watch`.
//!
//! One thread asks the daemon each second, another draws what was answered last and reads the keys: a daemon that does
//! not answer keeps nobody from leaving. Where it cannot be asked, as while it is restarted, the last picture stays, and
//! says so. The main thread waits for the end, or a signal, and puts the terminal back: a terminal that has gone away may
//! never let go of who reads it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Gauge, Paragraph, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame};
use steadfast::status::shown::{grouped, lasting, printable, rate, size};
use steadfast::status::{Health, Status};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Failure, WATCH, block_on};

/// The longest that a key, or an answer, waits to be noticed.
const GLANCE: Duration = Duration::from_millis(100);
/// The longest that an answer may take before the screen says that there is none.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time that the drawing thread has to end by itself once a signal has come.
const GRACE: Duration = Duration::from_millis(500);

/// What the asking thread says: a status, or why there is none.
type Answer = Result<Status, String>;

/// Shows the daemon until a key or a signal ends it; returns the number of the signal. The terminal is as it was
/// afterwards, also after a panic.
///
/// # Errors
/// There is no daemon to begin with.
pub(super) fn watch(
    ask: impl Fn() -> Result<Status, Failure> + Send + 'static,
) -> Result<Option<u8>, Failure> {
    let has_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut screen = Screen::new(ask()?, has_colours);
    let (answers, answered) = channel();
    std::thread::Builder::new().name("ask".into()).spawn(move || {
        while answers.send(ask().map_err(|error| error.to_string())).is_ok() {
            std::thread::sleep(WATCH);
        }
    })?;
    // Dropped last: a terminal that is dropped shows its cursor again.
    let _restored = Restored;
    block_on(async {
        // Only once signals are waited for is the terminal changed.
        let signalled = signalled()?;
        let (end, mut ended) = oneshot::channel();
        let leaves = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&leaves);
        // It ends with the process at the latest.
        std::thread::Builder::new().name("screen".into()).spawn(move || {
            let mut run = || run(&mut screen, &mut ratatui::try_init()?, &answered, &told);
            // Nobody waits for it any more once a signal has come.
            let _ = end.send(run());
        })?;
        tokio::select! {
            outcome = &mut ended => {
                outcome.map_err(|_| "the screen has ended by a defect: start this again")??;
                Ok(None)
            }
            signal = signalled => {
                leaves.store(true, Relaxed);
                let _ = timeout(GRACE, ended).await;
                Ok(Some(signal))
            }
        }
    })
}

/// Puts the terminal back when it is dropped, whatever of it was changed by then.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        // There may be no terminal any more.
        let _ = ratatui::try_restore();
    }
}

/// Waits for a signal that ends a program on a terminal, from now on; returns its number.
fn signalled() -> Result<impl Future<Output = u8>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut quit = signal(SignalKind::quit())?;
    Ok(async move {
        let kind = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
            _ = hangup.recv() => SignalKind::hangup(),
            _ = quit.recv() => SignalKind::quit(),
        };
        // They are below 32 (signal(7)).
        u8::try_from(kind.as_raw_value()).unwrap_or_default()
    })
}

/// Draws and reads keys until one of them, or `leaves`, ends it.
fn run(
    screen: &mut Screen,
    terminal: &mut DefaultTerminal,
    answered: &Receiver<Answer>,
    leaves: &AtomicBool,
) -> Result<(), Failure> {
    let mut is_old = true;
    loop {
        if leaves.load(Relaxed) {
            return Ok(());
        }
        loop {
            match answered.try_recv() {
                Ok(answer) => screen.hears(answer),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    return Err("the daemon is not asked any more, by a defect: start this again".into());
                }
            }
            is_old = true;
        }
        if is_old || screen.lacks().is_some() {
            terminal.draw(|frame| screen.draw(frame))?;
            is_old = false;
        }
        if event::poll(GLANCE)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let is_interrupt =
                        key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                    if is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                        return Ok(());
                    }
                }
                Event::Resize(..) => is_old = true,
                _ => {}
            }
        }
    }
}

/// What is on the screen.
struct Screen {
    status: Status,
    /// The time of that status.
    heard: Instant,
    /// Why the daemon could not be asked since.
    failure: Option<String>,
    /// The worker that another one has replaced while this looked.
    replaced: Option<u32>,
    has_colours: bool,
}

impl Screen {
    fn new(status: Status, has_colours: bool) -> Self {
        Self { status, heard: Instant::now(), failure: None, replaced: None, has_colours }
    }

    /// Why the picture is an old one, if it is.
    fn lacks(&self) -> Option<String> {
        let silence = self.heard.elapsed();
        let for_how_long = lasting(silence.as_secs_f64());
        match &self.failure {
            Some(reason) => Some(format!("reconnecting for {for_how_long}: {}", printable(reason))),
            None => (silence > PATIENCE).then(|| format!("no answer for {for_how_long}")),
        }
    }

    fn hears(&mut self, answer: Answer) {
        match answer {
            Ok(status) => {
                if status.pid != self.status.pid {
                    self.replaced = Some(self.status.pid);
                }
                *self = Self { status, heard: Instant::now(), failure: None, ..*self };
            }
            Err(reason) => self.failure = Some(reason),
        }
    }

    fn style(&self, colour: Color) -> Style {
        if self.has_colours { Style::new().fg(colour) } else { Style::new() }
    }

    /// What is less important, and is not dim where there are no colours.
    fn faint(&self) -> Style {
        self.style(Color::DarkGray)
    }

    fn state(&self, health: Health) -> Style {
        match health {
            Health::Good => self.style(Color::Green),
            Health::Passing => self.style(Color::Yellow),
            // It shows without colours, too.
            Health::Bad => self.style(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let status = &self.status;
        let head = self.head(status);
        let tree = status.tree().len();
        let lines = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let drains = status.drain.is_some();
        let height = frame.area().height;
        let rest = height.saturating_sub(lines(head.len()) + u16::from(drains) + 1);
        // The plots are the first to give way, then the end of the tree.
        let plots = if rest >= lines(tree) + 12 { 6 } else { 0 };
        let [top, bar, middle, requests, bottom, foot] = Layout::vertical([
            Constraint::Length(lines(head.len())),
            Constraint::Length(u16::from(drains)),
            Constraint::Length((lines(tree) + 1).min(rest.saturating_sub(4).max(rest / 2))),
            Constraint::Min(0),
            Constraint::Length(plots),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(head), top);
        if let Some(drain) = &status.drain {
            let style = self.style(Color::Yellow);
            let gauge = Gauge::default().gauge_style(style).label(format!(
                "{}: {}",
                printable(&drain.cause),
                drain.countdown()
            ));
            frame.render_widget(gauge.ratio(drain.passed().unwrap_or_default()), bar);
        }
        self.draw_tree(status, frame, middle);
        self.draw_requests(status, frame, requests);
        self.draw_plots(status, frame, bottom);
        frame.render_widget(Line::styled("q leaves", self.faint()), foot);
    }

    /// The lines at the top.
    fn head(&self, status: &Status) -> Vec<Line<'static>> {
        let health = if status.phase == "serving" { Health::Good } else { Health::Passing };
        let phase = Span::styled(
            printable(&status.phase).into_owned(),
            self.state(health).add_modifier(Modifier::BOLD),
        );
        let version = format!("steadfast {}  ", printable(&status.version));
        let mut lines = vec![Line::from(vec![
            Span::raw(version),
            phase,
            Span::raw(format!("  worker {}, up {}", status.pid, lasting(status.uptime))),
        ])];
        if let Some(lack) = self.lacks() {
            lines.push(Line::styled(lack, self.state(Health::Bad)));
        } else if let Some(old) = self.replaced {
            let text = format!("worker {} took over from worker {old}", status.pid);
            lines.push(Line::styled(text, self.state(Health::Passing)));
        }
        let rates = &status.rates;
        let connections = &status.connections;
        let time = |seconds: Option<f64>| seconds.map_or("–".to_owned(), lasting);
        let [p50, p90, p99] = [rates.p50, rates.p90, rates.p99].map(time);
        let (requests, sent) = (rate(rates.requests), size(rates.sent));
        lines.push(Line::raw(format!(
            "{requests} requests/s, {sent}/s; half within {p50}, 90 % {p90}, 99 % {p99}"
        )));
        let (in_flight, total) = (status.requests.len() as u64, connections.total() as u64);
        lines.push(Line::raw(format!(
            "{} in flight, {} connections: {} active, {} parked, {} tunnels",
            grouped(in_flight),
            grouped(total),
            connections.active(),
            connections.parked,
            connections.tunnel,
        )));
        lines.extend(status.warnings().into_iter().map(|warning| {
            Line::styled(format!("warning: {}", warning.replace('\n', " ")), self.state(Health::Bad))
        }));
        lines
    }

    fn draw_tree(&self, status: &Status, frame: &mut Frame<'_>, area: Rect) {
        let rows = status.tree().into_iter().map(|row| {
            let name = vec![Span::styled(row.branch, self.faint()), Span::raw(row.name)];
            Row::new([
                Cell::from(Line::from(name)),
                Cell::from(Span::styled(row.state, self.state(row.health))),
                Cell::from(row.doing),
                Cell::from(row.heartbeat.map(lasting).unwrap_or_default()),
                Cell::from(row.restarts.map(|number| number.to_string()).unwrap_or_default()),
            ])
        });
        let widths = [24, 10].map(Constraint::Length).into_iter();
        let more = [Constraint::Fill(1), Constraint::Length(9), Constraint::Length(8)];
        let widths = widths.chain(more).take(if is_narrow(area) { 2 } else { 5 });
        let header = Row::new(["tree", "state", "doing", "heartbeat", "restarts"]).style(self.faint());
        frame.render_widget(Table::new(rows, widths).header(header), area);
    }

    fn draw_requests(&self, status: &Status, frame: &mut Frame<'_>, area: Rect) {
        let room = usize::from(area.height.saturating_sub(1));
        let all = status.requests.len();
        // One line is for the oldest, rather than for the number of the others.
        let counts_rest = all > room && room > 1;
        let shown = if counts_rest { room - 1 } else { all.min(room) };
        let rows = status.requests.iter().take(shown).map(|request| {
            let what = format!("{} {}", request.method, request.path);
            Row::new([
                lasting(request.age),
                printable(&what).replace(['\n', '\t'], " "),
                printable(&request.waiting_for).into_owned(),
                size(request.sent),
            ])
        });
        let widths = [Constraint::Length(9), Constraint::Fill(3), Constraint::Fill(2), Constraint::Length(9)];
        let widths = widths.into_iter().take(if is_narrow(area) { 2 } else { 4 });
        let header = Row::new(["in flight", "oldest first", "waiting for", "sent"]).style(self.faint());
        let [table, rest] =
            Layout::vertical([Constraint::Fill(1), Constraint::Length(u16::from(counts_rest))]).areas(area);
        frame.render_widget(Table::new(rows, widths).header(header), table);
        let more = format!("and {} more", grouped((all - shown) as u64));
        frame.render_widget(Line::styled(more, self.faint()), rest);
    }

    fn draw_plots(&self, status: &Status, frame: &mut Frame<'_>, area: Rect) {
        let [left, right] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(1).areas(area);
        let history = &status.history.rates;
        let requests: Vec<_> = history.iter().map(|rates| whole(rates.requests)).collect();
        let slow: Vec<_> = history.iter().map(|rates| whole(rates.p99.unwrap_or_default() * 1e6)).collect();
        let label = |what: &str, most: String| format!("{what}, last minutes, up to {most}");
        let top = requests.iter().copied().max().unwrap_or_default();
        self.draw_plot(&label("requests/s", grouped(top)), &requests, frame, left);
        let top = history.iter().filter_map(|rates| rates.p99).fold(0.0, f64::max);
        self.draw_plot(&label("99 % within", lasting(top)), &slow, frame, right);
    }

    fn draw_plot(&self, title: &str, values: &[u64], frame: &mut Frame<'_>, area: Rect) {
        // The newest are those that are seen.
        let hidden = values.len().saturating_sub(usize::from(area.width));
        let title = Line::styled(title.to_owned(), self.faint());
        let block = Block::new().borders(Borders::TOP).border_style(self.faint()).title(title);
        let plot = Sparkline::default().data(&values[hidden..]).style(self.style(Color::Cyan)).block(block);
        frame.render_widget(plot, area);
    }
}

/// True if only the most important columns have room.
fn is_narrow(area: Rect) -> bool {
    area.width < 64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it saturates, which is as good in a plot"
)]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    //! What is on the screen in each state, on terminals of many sizes.

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::{Value, json};

    use super::*;

    const SIZES: [(u16, u16); 3] = [(80, 24), (40, 10), (200, 60)];

    /// A status, with some of it changed.
    fn status(change: impl FnOnce(&mut Value)) -> Status {
        let children: Vec<_> = ["signals", "http", "admin", "systemd", "worker"]
            .map(|name| {
                json!({"name": name, "running": true, "state": "running", "heartbeat": 0.3, "restarts": 0,
                       "doing": "accepting connections"})
            })
            .into();
        let rates = json!({"requests": 1203.4, "sent": 5_000_000, "p50": 0.0042, "p90": 0.05, "p99": 0.31});
        let request = |path: &str, age| {
            json!({"method": "GET", "path": path, "peer": "192.0.2.7:1", "age": age, "sent": 1_048_576,
                   "waiting_for": "the upstream to answer"})
        };
        let mut status = json!({
            "phase": "serving", "version": "0.1.0", "pid": 830, "uptime": 7500.0, "children": children,
            "main_process": {"pid": 800, "uptime": 273_600.0, "restarts": 1},
            "connections": {"parked": 298, "reading": 0, "answering": 12, "flushing": 0, "discarding": 0, "tunnel": 2,
                            "closing": 0},
            "totals": {"connections": 1, "requests": 1, "client_gone": 0, "broken_off": 0, "cut": 0,
                       "handed_over": [0, 0], "taken_over": [0, 0]},
            "rates": rates, "history": {"interval": 2.0, "rates": vec![rates.clone(); 150]},
            "requests": [request("/app/export", 12.3), request("/app/backup", 1.5)],
        });
        change(&mut status);
        serde_json::from_value(status).expect("it is a status")
    }

    fn draining(status: &mut Value) {
        status["phase"] = json!("draining");
        status["drain"] = json!({"cause": "SIGTERM", "lasted": 12.0, "left": 18.0});
    }

    fn after_a_takeover(status: &mut Value) {
        status["predecessors"] =
            json!([{"pid": 815, "since": 40.0, "in_flight": 2, "left": 17.5, "status": "draining"}]);
    }

    /// The text on a terminal of this size.
    fn shown(screen: &Screen, (width, height): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it has no errors");
        terminal.draw(|frame| screen.draw(frame)).expect("it has no errors");
        terminal.backend().to_string()
    }

    fn screen<const N: usize>(answers: [Answer; N]) -> Screen {
        let mut screen = Screen::new(status(|old| old["pid"] = json!(815)), true);
        for answer in answers {
            screen.hears(answer);
        }
        screen
    }

    fn assert_shows(screen: &Screen, size: (u16, u16), words: &[&str]) {
        let text = shown(screen, size);
        for word in words {
            assert!(text.contains(word), "{word} at {size:?} in:\n{text}");
        }
    }

    #[test]
    fn all_of_a_daemon_that_serves_is_on_a_screen_of_80_by_24() {
        let screen = screen([Ok(status(|_| {}))]);
        let words = [
            "serving",
            "main process 800",
            "└── worker 830",
            "├── signals",
            "1,203 requests/s, 4.8 MiB/s; half within 4.2 ms, 90 % 50 ms, 99 % 310 ms",
            "2 in flight, 312 connections: 12 active, 298 parked, 2 tunnels",
            "GET /app/export",
            "GET /app/backup",
            "requests/s, last minutes, up to 1,203",
            "q leaves",
        ];
        assert_shows(&screen, (80, 24), &words);
        assert_shows(&screen, (200, 60), &words);
        assert_shows(&screen, (40, 10), &["serving", "main process 800", "GET /app"]);
    }

    #[test]
    fn a_drain_has_its_countdown_and_its_requests_on_every_screen() {
        let screen = screen([Ok(status(draining))]);
        for size in SIZES {
            assert_shows(&screen, size, &["draining", "SIGTERM: 18 s left", "GET /app"]);
        }
    }

    #[test]
    fn after_a_takeover_the_predecessor_and_its_countdown_are_seen() {
        let screen = screen([Ok(status(after_a_takeover))]);
        let words = [
            "worker 830 took over from worker 815",
            "└── predecessor 815",
            "2 requests in flight, 18 s left",
        ];
        assert_shows(
            &screen,
            (80, 24),
            &["worker 830 took over from worker 815", "└── predecessor 815", "2 requests in"],
        );
        assert_shows(&screen, (200, 60), &words);
    }

    #[test]
    fn while_the_daemon_cannot_be_asked_the_last_picture_stays_and_says_so() {
        let mut screen = screen([Ok(status(|_| {})), Err("no daemon listens".to_owned())]);
        for size in SIZES {
            assert_shows(&screen, size, &["reconnecting for", "worker 830"]);
        }
        screen.hears(Ok(status(|new| new["pid"] = json!(840))));
        assert!(!shown(&screen, (80, 24)).contains("reconnecting"));
        assert_shows(&screen, (80, 24), &["worker 840 took over from worker 830"]);
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_said_not_to() {
        let mut screen = screen([]);
        screen.heard = Instant::now().checked_sub(PATIENCE * 2).expect("the machine is up that long");
        for size in SIZES {
            assert_shows(&screen, size, &["no answer for 10 s"]);
        }
    }

    #[test]
    fn of_more_requests_than_there_are_lines_the_rest_is_counted() {
        let many = |status: &mut Value| status["requests"] = vec![status["requests"][0].clone(); 1203].into();
        for size in SIZES {
            assert_shows(&screen([Ok(status(many))]), size, &[" more"]);
        }
    }

    #[test]
    fn no_terminal_is_too_small() {
        for change in [draining, after_a_takeover] {
            let screen = screen([Ok(status(change)), Err("no daemon listens".to_owned())]);
            for size in (0..30).flat_map(|width| (0..12).map(move |height| (width, height))) {
                let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).expect("it has no errors");
                terminal.draw(|frame| screen.draw(frame)).expect("it has no errors");
            }
        }
    }

    #[test]
    fn without_colours_nothing_has_one() {
        let mut screen = screen([Ok(status(draining))]);
        screen.has_colours = false;
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("it has no errors");
        terminal.draw(|frame| screen.draw(frame)).expect("it has no errors");
        let cells = &terminal.backend().buffer().content;
        let coloured = |cell: &&ratatui::buffer::Cell| (cell.fg, cell.bg) != (Color::Reset, Color::Reset);
        assert_eq!(cells.iter().find(coloured), None);
    }

    #[test]
    fn what_comes_from_outside_cannot_drive_the_terminal() {
        let hostile = "\u{1b}[31m\u{202e}";
        let screen = screen([Ok(status(|status| {
            status["requests"][0]["path"] = json!(hostile);
            status["children"][0]["doing"] = json!(hostile);
            status["stale_config"] = json!(hostile);
            status["phase"] = json!(hostile);
        }))]);
        let text = shown(&screen, (200, 60));
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        assert!(text.matches(r"\u{1b}[31m").count() >= 4, "{text}");
    }
}
