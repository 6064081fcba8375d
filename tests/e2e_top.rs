//! `xdp-lb top` in a real terminal, over real servers and clients.

mod common;

use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::balancer::{Balancer, PIN_DIR, XDP_LB, weighted};
use common::clients::{KeepAlive, requests, spread};
use common::live::{Visits, ask, complaint, say, start, state, three_backends, write};
use common::netns::{Lab, in_lab};
use common::networks::{CLIENT, VIP, WEBS, two_arms};
use common::servers::{HTTP, logging_nginx_everywhere, nginx_everywhere, requests_logged};
use common::terminal::Terminal;
use common::within;
use nix::sys::signal::{Signal, kill};

const CHECKS: &str = "--health tcp,interval=300ms,timeout=300ms,fall=2,rise=2";

fn balancer(lab: &Lab) -> Result<Balancer<'_>> {
    Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {} --assign-vip {CHECKS}", weighted(HTTP)))
}

/// Starts it in a terminal, by a shell that tells how it ended.
fn top<'a>(lab: &'a Lab, columns: u16, rows: u16, args: &str) -> Result<Terminal<'a>> {
    let terminal = Terminal::open(lab, columns, rows)?;
    terminal.run(&format!("clear; {XDP_LB} top {args}; echo ended by $?"))?;
    terminal.shows("BACKEND");
    Ok(terminal)
}

/// Answers a question that is on the screen, after the time that it takes to read it.
fn say_yes(terminal: &Terminal) -> Result<()> {
    std::thread::sleep(Duration::from_millis(200));
    terminal.press("y")
}

/// The words of a backend's line, without the marks before its address.
fn row(screen: &str, address: &str) -> Option<Vec<String>> {
    let address = format!("{address}:{HTTP}");
    let line = screen.lines().find(|line| line.contains(&address) && !line.contains("backend "))?;
    Some(line[line.find(&address)?..].split_whitespace().map(str::to_owned).collect())
}

/// What stands in a column of a backend's line.
fn cell(screen: &str, address: &str, column: &str) -> Option<String> {
    let titles: Vec<&str> =
        screen.lines().find(|line| line.contains("BACKEND"))?.split_whitespace().collect();
    let at = titles.iter().position(|title| *title == column)?;
    row(screen, address)?.get(at).cloned()
}

/// The marks before a backend's address.
fn marks(screen: &str, address: &str) -> Option<String> {
    let address = format!("{address}:{HTTP}");
    let line = screen.lines().find(|line| line.contains(&address))?;
    Some(line[..line.find(&address)?].trim().to_owned())
}

/// A figure of the header.
fn figure(screen: &str, name: &str) -> Option<String> {
    let mut words = screen.lines().take(3).flat_map(str::split_whitespace);
    words.find(|word| *word == name)?;
    words.next().map(str::to_owned)
}

/// The totals are those that curl and nginx counted, exactly.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_figures_are_those_of_clients_and_servers() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = logging_nginx_everywhere(lab)?;
        let _lb = balancer(lab)?;
        let terminal = top(lab, 80, 24, "")?;
        let mut kept = KeepAlive::open_many(lab, VIP, 80, 7)?;
        kept.iter_mut().try_for_each(|kept| kept.ask().map(drop))?;
        let answers = requests(lab, &format!("http://{VIP}/?[1-130]"))?;
        let made = answers.len() + kept.len();
        let total = made.to_string();
        let screen = terminal.until("all connections", |screen| {
            (figure(screen, "total")? == total).then(|| screen.to_owned())
        });
        println!("{screen}");
        let mut sum = 0;
        for (web, address) in WEBS {
            let on_screen: usize = cell(&screen, address, "TOTAL").context("no total")?.parse()?;
            assert_eq!(on_screen, requests_logged(lab, web)?.len(), "{web}, by its log\n{screen}");
            sum += on_screen;
        }
        assert_eq!(sum, made, "{screen}");
        assert_eq!(spread(&answers).values().sum::<usize>() + kept.len(), made);
        // Those that are kept are live; of the others nothing is.
        let live: usize = WEBS
            .iter()
            .map(|(_, address)| cell(&screen, address, "LIVE")?.parse::<usize>().ok())
            .sum::<Option<usize>>()
            .context("no live connections")?;
        assert_eq!(live, kept.len(), "{screen}");
        assert_eq!(figure(&screen, "live"), Some(kept.len().to_string()));
        // Times of handshakes, which took some.
        let p50: f64 = cell(&screen, WEBS[0].1, "P50ms").context("no p50")?.parse()?;
        let p99: f64 = cell(&screen, WEBS[0].1, "P99ms").context("no p99")?.parse()?;
        assert!(p50 > 0.0 && p99 >= p50, "{screen}");
        // When nothing comes any more the rates are 0, and the totals stay.
        let screen = terminal.until("rates of nothing", |screen| {
            (cell(screen, WEBS[0].1, "CONN/S")? == "0").then(|| screen.to_owned())
        });
        assert_eq!(figure(&screen, "total"), Some(total.clone()));
        // The same is printed for scripts.
        let printed = lab.run("lb", XDP_LB, &["top", "--once", "--interval", "200ms"])?;
        println!("{printed}");
        for (web, address) in WEBS {
            assert_eq!(
                cell(&printed, address, "TOTAL"),
                Some(requests_logged(lab, web)?.len().to_string()),
                "{printed}"
            );
        }
        Ok(())
    })
}

/// Within seconds one sees which backend is ill, and why.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_an_ill_backend_comes_first() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let servers = nginx_everywhere(lab)?;
        let _lb = balancer(lab)?;
        let terminal = top(lab, 80, 24, "")?;
        terminal.shows("none of 3 backends ill");
        servers[2].signal(Signal::SIGKILL)?;
        let address = WEBS[2].1;
        let screen = within(Duration::from_secs(10), "the backend is shown as ill", || {
            let screen = terminal.screen().ok()?;
            (cell(&screen, address, "STATE")? == "down").then_some(screen)
        });
        println!("{screen}");
        assert!(screen.contains("1 of 3 backends ILL"), "{screen}");
        assert_eq!(marks(&screen, address).as_deref(), Some(">!"), "{screen}");
        let lines: Vec<&str> = screen.lines().collect();
        let at = lines.iter().position(|line| line.contains(address)).context("no line")?;
        let first = lines.iter().position(|line| line.contains(":8080")).context("no backend")?;
        assert_eq!(at, first, "ill ones come first\n{screen}");
        assert!(lines[at + 1].contains("down for") && lines[at + 1].contains("refused"), "{screen}");
        Ok(())
    })
}

/// One that no check finds: it takes no SYN from clients, and answers those who ask how it is.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_silent_backend_is_found_without_checks() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let args = format!("eth0 --vip {VIP}:80 {} --assign-vip --scheduler rr {CHECKS}", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        let terminal = top(lab, 80, 24, "")?;
        let rule =
            "table ip t { chain c { type filter hook input priority 0; ip saddr 192.168.1.2 drop; }; }";
        lab.run("web2", "nft", &[rule])?;
        // Clients that wait: every third one for nothing.
        let limit = Duration::from_millis(2500);
        let visits: Vec<_> = (0..6).map(|_| Visits::begin(lab, VIP, 80, limit)).collect::<Result<_>>()?;
        let screen = within(Duration::from_secs(10), "the silent backend is shown as ill", || {
            let screen = terminal.screen().ok()?;
            (marks(&screen, WEBS[1].1)?.ends_with('!')).then_some(screen)
        });
        println!("{screen}");
        visits.into_iter().for_each(|visits| drop(visits.end()));
        let lines: Vec<&str> = screen.lines().collect();
        let at = lines.iter().position(|line| line.contains(":8080")).context("no backend")?;
        assert!(lines[at].contains(WEBS[1].1) && lines[at].contains(" up "), "{screen}");
        assert!(lines[at + 1].contains("silent: ") && lines[at + 1].contains("SYNs repeated"), "{screen}");
        Ok(())
    })
}

/// One screen is enough, without any check and with few clients.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_one_screen_finds_a_silent_backend() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let args =
            format!("eth0 --vip {VIP}:80 {} --assign-vip --scheduler rr --health none", weighted(HTTP));
        let mut lb = Balancer::start(lab, &args)?;
        requests(lab, &format!("http://{VIP}/?[1-9]"))?;
        let rule =
            "table ip t { chain c { type filter hook input priority 0; ip saddr 192.168.1.2 drop; }; }";
        lab.run("web2", "nft", &[rule])?;
        let target = format!("{VIP}:80").parse()?;
        let answered = lab.within("client", || {
            let one = |_: &u32| {
                let answered = TcpStream::connect_timeout(&target, Duration::from_millis(500)).is_ok();
                std::thread::sleep(Duration::from_millis(500));
                answered
            };
            (0..8).filter(one).count()
        })?;
        // Of the two or three that met it none was; more may have been too slow on a busy machine.
        assert!((1..=6).contains(&answered), "{answered} of 8");
        let silent = |screen: &str| {
            assert_eq!(marks(screen, WEBS[1].1).as_deref(), Some("!"), "{screen}");
            let lines: Vec<&str> = screen.lines().collect();
            let at = lines.iter().position(|line| line.contains(WEBS[1].1)).expect("a line");
            assert!(lines[at + 1].contains("silent: ") && lines[at + 1].contains("SYN-ACK"), "{screen}");
            assert!(screen.contains("1 of 3 backends ILL"), "{screen}");
        };
        silent(&say(lab, "top --once")?);
        silent(&say(lab, "top --once --interval 100ms")?);
        // The tables know it without the process, too.
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        silent(&say(lab, "top --once --interval 100ms")?);
        say(lab, "detach eth0").map(drop)
    })
}

/// Checks are content with it, and are made for every few refusals: what was counted stays.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_every_screen_finds_a_backend_that_refuses_clients_alone() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let file = format!(
            "interface = \"eth0\"\nassign-vip = true\nstats-interval = 0\n[[service]]\nname = \"web\"\nvip = \"{VIP}:80\"\n\
             scheduler = \"round-robin\"\nhealth = {{ type = \"tcp\", interval = \"1s\" }}\nbackend = [ {} ]\n",
            three_backends()
        );
        write(lab, &file)?;
        let _lb = start(lab)?;
        requests(lab, &format!("http://{VIP}/?[1-9]"))?;
        let rule = "table ip t { chain c { type filter hook input priority 0; ip saddr 192.168.1.2 tcp dport 8080 \
                    reject with tcp reset; }; }";
        lab.run("web2", "nft", &[rule])?;
        let target = format!("{VIP}:80").parse()?;
        for _ in 0..4 {
            lab.within("client", || {
                (0..9)
                    .filter(|_| TcpStream::connect_timeout(&target, Duration::from_secs(1)).is_err())
                    .count()
            })?;
            // A check follows, which is good.
            std::thread::sleep(Duration::from_millis(1500));
            let screen = say(lab, "top --once --interval 100ms")?;
            assert_eq!(marks(&screen, WEBS[1].1).as_deref(), Some("!"), "{screen}");
            assert!(screen.contains("refuses: "), "{screen}");
        }
        Ok(())
    })
}

/// Another instance's figures are no answer.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_socket_of_nobody_is_an_error() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let mut lb = balancer(lab)?;
        for words in ["top --once", "status", "stats --count 1", "backend list", "connections"] {
            let said = complaint(lab, &format!("{words} --socket /run/xdp-lb/nobody.sock"))?;
            assert!(
                said.contains("no instance listens at /run/xdp-lb/nobody.sock: is one running?"),
                "{said}"
            );
        }
        // The pins of the one that listened there are known, by its name.
        let own = "top --once --interval 100ms --socket /run/xdp-lb/xdp_lb.sock";
        assert!(!say(lab, own)?.contains("NO PROCESS"));
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        assert!(say(lab, own)?.contains("NO PROCESS"));
        say(lab, "detach eth0").map(drop)
    })
}

/// Drops are told by reason, exactly.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_drops_by_reason() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let args = format!("eth0 --vip {VIP}:7/udp --backend 10.0.0.10:7 --assign-vip");
        let _lb = Balancer::start(lab, &args)?;
        let terminal = top(lab, 80, 24, "")?;
        terminal.shows("DROPS: none");
        terminal.press("D")?;
        terminal.shows("Disable backend 10.0.0.10:7");
        say_yes(&terminal)?;
        let is_off = |line: &str| line.contains("-10.0.0.10:7 ") && line.contains(" disabled ");
        terminal.until("disabled", |screen| screen.lines().any(is_off).then_some(()));
        let socket = lab.within("client", || UdpSocket::bind((CLIENT, 0)))??;
        for _ in 0..17 {
            socket.send_to(b"?", (VIP, 7))?;
        }
        let drops = terminal.until("the drops", |screen| {
            let line = screen.lines().find(|line| line.contains("no_backend"))?;
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[2] == "17").then(|| screen.to_owned())
        });
        println!("{drops}");
        let service = drops.lines().find(|line| line.contains("0/1 up")).context("no service")?;
        assert!(service.trim().starts_with('!'), "nobody serves it\n{drops}");
        assert!(drops.contains("1 of 1 services DOWN"), "{drops}");
        Ok(())
    })
}

/// Keys change a backend only after a yes.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_changes_need_a_yes() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let _lb = balancer(lab)?;
        let terminal = top(lab, 80, 24, "--interval 500ms")?;
        let state = |web: usize| state(lab, &format!("{}:{HTTP}", WEBS[web].1));
        let becomes = |state: &str| {
            terminal.until(state, |screen| (cell(screen, WEBS[1].1, "STATE")? == state).then_some(()));
        };
        terminal.press("j")?;
        for answer in ["n", "Escape"] {
            terminal.press("d")?;
            terminal.shows("Drain backend 10.0.0.11:8080");
            terminal.press(answer)?;
            terminal.shows("nothing was changed");
            assert_eq!(state(1)?, "up");
        }
        terminal.press("d")?;
        terminal.shows("y: yes");
        // What is no answer changes nothing either.
        terminal.press("Enter")?;
        terminal.press("e")?;
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(state(1)?, "up");
        say_yes(&terminal)?;
        becomes("drain");
        let list = ask(lab, "backend list")?;
        let list = list["backends"].as_array().context("no backends")?;
        let drained: Vec<_> = list.iter().filter(|one| one["state"] == "drain").collect();
        assert_eq!(drained.len(), 1);
        assert_eq!(drained[0]["address"], "10.0.0.11:8080");

        // It has moved up in the list, and is still the selected one.
        terminal.press("e")?;
        terminal.shows("Enable backend 10.0.0.11:8080");
        say_yes(&terminal)?;
        becomes("up");
        terminal.press("D")?;
        terminal.shows("Disable backend 10.0.0.11:8080");
        say_yes(&terminal)?;
        becomes("disabled");
        assert_eq!(state(1)?, "disabled");
        Ok(())
    })
}

/// The addresses in the list, in their order.
fn order(screen: &str) -> Vec<String> {
    let of = |line: &str| Some(line[line.find("10.0.0.")?..].split(':').next()?.to_owned());
    screen.lines().filter_map(of).collect()
}

/// Lines are chosen and put into order, and any size will do.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_sorted_filtered_and_resized() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let _lb = balancer(lab)?;
        let terminal = top(lab, 80, 24, "--interval 500ms")?;
        requests(lab, &format!("http://{VIP}/?[1-100]"))?;
        say(lab, &format!("backend disable {VIP}:80 10.0.0.11:8080"))?;
        for _ in 0..3 {
            terminal.press("s")?;
        }
        terminal.shows("sort:TOTAL");
        let by_total = ["10.0.0.10", "10.0.0.11", "10.0.0.12"];
        terminal.until("by total", |screen| (order(screen) == by_total).then_some(()));
        terminal.press("r")?;
        let reversed = ["10.0.0.12", "10.0.0.11", "10.0.0.10"];
        terminal.until("reversed", |screen| (order(screen) == reversed).then_some(()));

        terminal.type_text("/disabled")?;
        terminal.until("one of them", |screen| (order(screen) == ["10.0.0.11"]).then_some(()));
        terminal.press("Enter")?;
        terminal.shows("filter: disabled");
        terminal.press("Escape")?;
        terminal.until("all of them", |screen| (order(screen).len() == 3).then_some(()));

        terminal.press("Enter")?;
        terminal.shows("the last minute");
        let details = terminal.screen()?;
        assert!(details.contains("20 in all") && details.contains("set to enabled"), "{details}");
        println!("{details}");
        terminal.press("Escape")?;
        terminal.press("?")?;
        terminal.shows("Help");
        terminal.press("Escape")?;
        for (columns, rows) in [(20, 5), (1, 1), (3, 2), (200, 50)] {
            terminal.resize(columns, rows)?;
            std::thread::sleep(Duration::from_millis(700));
        }
        terminal.shows("OUT b/s");
        Ok(())
    })
}

/// Whatever ends it, the shell gets its terminal back.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_terminal_is_given_back() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _lb = balancer(lab)?;
        let terminal = Terminal::open(lab, 80, 24)?;
        terminal.run("clear; stty -g >/run/lab/before; echo ready")?;
        terminal.shows("ready");
        let ends: [(&str, &dyn Fn() -> Result<()>); 4] = [
            ("q", &|| terminal.press("q")),
            ("^C", &|| terminal.press("C-c")),
            ("TERM", &|| Ok(kill(terminal.foreground()?, Signal::SIGTERM)?)),
            ("INT", &|| Ok(kill(terminal.foreground()?, Signal::SIGINT)?)),
        ];
        for (how, end) in ends {
            terminal.run(&format!("clear; {XDP_LB} top; echo ended by $?"))?;
            terminal.shows("BACKEND");
            assert!(terminal.is_alternate()?);
            end()?;
            terminal.shows("ended by 0");
            assert!(!terminal.is_alternate()?, "{how}");
            let screen = terminal.screen()?;
            assert!(!screen.contains("BACKEND"), "{how}: {screen}");
            terminal
                .run("clear; stty -g >/run/lab/after; cmp /run/lab/before /run/lab/after && echo same")?;
            terminal
                .until("the same settings", |screen| screen.lines().any(|line| line == "same").then_some(()));
        }
        Ok(())
    })
}

/// It outlives the instance, reads what that left, and finds the next one.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_instance_goes_and_comes_back() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = balancer(lab)?;
        let terminal = top(lab, 80, 24, "--interval 300ms")?;
        requests(lab, &format!("http://{VIP}/?[1-10]"))?;
        lb.stop(Signal::SIGKILL)?;
        terminal.shows("NO PROCESS");
        requests(lab, &format!("http://{VIP}/?[1-10]"))?;
        terminal
            .until("what the kernel counts alone", |screen| (figure(screen, "total")? == "20").then_some(()));
        terminal.press("d")?;
        terminal.shows("no process runs");
        assert!(!terminal.screen()?.contains("y: yes"));

        let mut lb = balancer(lab)?;
        terminal.until("the process", |screen| (!screen.contains("NO PROCESS")).then_some(()));
        terminal.press("d")?;
        terminal.shows("y: yes");
        terminal.press("n")?;
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        terminal.shows("NO ANSWER for");
        println!("{}", terminal.screen()?);
        terminal.press("d")?;
        terminal.shows("nobody answers");
        assert!(!std::path::Path::new(PIN_DIR).exists());

        let _lb = balancer(lab)?;
        terminal.until("another instance", |screen| (figure(screen, "total")? == "0").then_some(()));
        requests(lab, &format!("http://{VIP}/?[1-3]"))?;
        terminal.until("its figures", |screen| (figure(screen, "total")? == "3").then_some(()));
        terminal.press("q")?;
        terminal.shows("ended by 0");
        Ok(())
    })
}

/// Colours are not needed, and not used where they are not wanted.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_colours() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _lb = balancer(lab)?;
        let terminal = Terminal::open(lab, 80, 24)?;
        // Nothing listens behind it.
        let is_coloured = |text: &str| text.contains("38;5;1m");
        for (before, args, coloured) in
            [("", "", true), ("NO_COLOR=1 ", "", false), ("", " --no-color", false)]
        {
            terminal.run(&format!("clear; {before}{XDP_LB} top{args}; echo ended by $?"))?;
            terminal.shows("3 of 3 backends ILL");
            let text = terminal.screen_with_styles()?;
            assert_eq!(is_coloured(&text), coloured, "{before}{args}: {text:?}");
            assert!(terminal.screen()?.contains("!10.0.0.1"), "{text}");
            // Ill ones are reversed then.
            assert_eq!(
                text.contains("\x1b[1m\x1b[7m!") || text.contains("\x1b[1;7m!"),
                !coloured,
                "{text:?}"
            );
            terminal.press("q")?;
            terminal.shows("ended by 0");
        }
        Ok(())
    })
}
