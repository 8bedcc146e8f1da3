//! The examples of docs/privacy.md.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_privacy::{Mechanism, Rounds, pld, rdp};

#[test]
fn the_examples_are_what_is_computed() {
    let text = include_str!("../../docs/privacy.md");
    let table = text.split("<!-- examples").nth(1).expect("the mark of the table");
    let rows = table.lines().skip(3).take_while(|line| line.starts_with('|'));
    let (mut checked, mut wrong) = (0, Vec::new());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let number = |index: usize| cells[index].parse::<f64>().unwrap();
        let mechanism = Mechanism::new(number(0), number(1)).unwrap();
        let rounds = [Rounds::new(mechanism, number(2) as u64).unwrap()];
        let by_pld = pld::epsilon(&rounds, number(3)).unwrap();
        let by_rdp = rdp::epsilon(&rounds, number(3)).unwrap().epsilon;
        let found = format!("| {} | {by_pld:.3} | {by_rdp:.3} |", cells[..4].join(" | "));
        if found != row {
            wrong.push(format!("{row} should be {found}"));
        }
        checked += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(checked, 7);
}
