//! What a comparison says in words: which group is best, and whether that is more than chance.

use super::{Group, Metric};

/// Standard errors of the difference beyond which a lead counts as clear.
const CLEAR: f64 = 2.0;

/// Compares the best of the other groups with the first one, in sentences.
pub fn verdict(metric: Metric, groups: &[Group]) -> String {
    let Some((first, others)) = groups.split_first() else { return String::new() };
    if others.is_empty() {
        return format!("{}: there is nothing to compare it with.", first.name);
    }
    if let Some(none) = groups.iter().find(|group| group.result.is_none()) {
        let metric = match metric {
            Metric::Accuracy => "accuracy",
            Metric::AbsoluteError => "absolute error",
        };
        return format!("{} has no {metric}: no verdict is possible.", none.name);
    }
    let lead_of =
        |group: &Group| metric.lead(group.result.unwrap_or(f64::NAN), first.result.unwrap_or(f64::NAN));
    let Some(best) = others.iter().max_by(|a, b| lead_of(a).total_cmp(&lead_of(b))) else {
        return String::new();
    };
    let lead = lead_of(best);
    let result = if amount(metric, lead).trim_matches(['0', '.']).is_empty() {
        let least = match metric {
            Metric::Accuracy => "0.01 points of accuracy",
            Metric::AbsoluteError => "0.0001 of mean absolute error",
        };
        format!("{} and {} differ by less than {least}.", best.name, first.name)
    } else {
        say_lead(metric, first, best, lead) + &clearness(metric, first, best, lead)
    };
    format!("{result} {}", averaging(metric, groups))
}

fn amount(metric: Metric, difference: f64) -> String {
    match metric {
        Metric::Accuracy => format!("{:.2}", 100.0 * difference.abs()),
        Metric::AbsoluteError => format!("{:.4}", difference.abs()),
    }
}

fn say_lead(metric: Metric, first: &Group, best: &Group, lead: f64) -> String {
    let (amount, best, first) = (amount(metric, lead), &best.name, &first.name);
    let (unit, worse) = match metric {
        Metric::Accuracy => ("points of accuracy", "below"),
        Metric::AbsoluteError => ("of mean absolute error", "above"),
    };
    if lead > 0.0 {
        format!("{best} beats {first} by {amount} {unit}")
    } else {
        format!("None beats {first}; {best} comes nearest, {amount} {unit} {worse}")
    }
}

fn clearness(metric: Metric, first: &Group, best: &Group, lead: f64) -> String {
    let (Some(first_error), Some(best_error)) = (first.squared_error(), best.squared_error()) else {
        let who = match (first.seeds, best.seeds) {
            (1, 1) => "both have one seed",
            (1, _) => "the first has one seed",
            _ => "the other has one seed",
        };
        return format!(
            ". Whether that is more than chance cannot be said: {who}, and one seed has no standard error; run more \
             seeds (--seed)."
        );
    };
    let error = (first_error + best_error).sqrt();
    let clear = lead.abs() > CLEAR * error;
    let unit = match metric {
        Metric::Accuracy => " points",
        Metric::AbsoluteError => "",
    };
    format!(
        ", {}: the standard error of the difference is {}{unit}, and a lead counts as clear beyond twice that.",
        if clear { "clearly" } else { "not clearly" },
        amount(metric, error),
    )
}

/// Over how many evaluated rounds the results are means.
fn averaging(metric: Metric, groups: &[Group]) -> String {
    let least = groups.iter().map(|group| group.averaged).min().unwrap_or(0);
    let most = groups.iter().map(|group| group.averaged).max().unwrap_or(0);
    let results = match metric {
        Metric::Accuracy => "Accuracies",
        Metric::AbsoluteError => "Errors",
    };
    match most {
        0 => "No round was evaluated.".to_owned(),
        1 => format!("{results} are those of the last evaluated round."),
        _ if least == most => format!("{results} are means over the last {most} evaluated rounds."),
        _ => format!("{results} are means over the last {least} to {most} evaluated rounds of a run."),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{group, run};
    use super::*;

    #[test]
    fn one_seed_says_nothing_about_chance() {
        let text = verdict(Metric::Accuracy, &[group(&[run("a", 1, &[0.5])]), group(&[run("b", 1, &[0.9])])]);
        assert!(
            text.starts_with("b beats a by 40.00 points of accuracy. Whether that is more than chance"),
            "{text}"
        );
        assert!(text.contains("both have one seed"), "{text}");
        assert!(!text.contains("clearly") && !text.contains("of the difference"), "{text}");
        let text = verdict(
            Metric::Accuracy,
            &[group(&[run("a", 1, &[0.5]), run("a", 2, &[0.6])]), group(&[run("b", 1, &[0.9])])],
        );
        assert!(text.contains("the other has one seed") && !text.contains("clearly"), "{text}");
    }

    #[test]
    fn a_lead_is_clear_beyond_twice_the_standard_error() {
        let first = || group(&[run("a", 1, &[0.70]), run("a", 2, &[0.72])]);
        let clear =
            verdict(Metric::Accuracy, &[first(), group(&[run("b", 1, &[0.80]), run("b", 2, &[0.82])])]);
        assert!(
            clear.starts_with("b beats a by 10.00 points of accuracy, clearly: the standard error"),
            "{clear}"
        );
        assert!(clear.contains("difference is 1.41 points"), "{clear}");
        let unclear =
            verdict(Metric::Accuracy, &[first(), group(&[run("b", 1, &[0.72]), run("b", 2, &[0.74])])]);
        assert!(unclear.contains("by 2.00 points of accuracy, not clearly: the standard error"), "{unclear}");
    }

    #[test]
    fn the_worse_and_the_equal_are_no_winners() {
        let worse =
            verdict(Metric::Accuracy, &[group(&[run("a", 1, &[0.9])]), group(&[run("b", 1, &[0.5])])]);
        assert!(
            worse.starts_with("None beats a; b comes nearest, 40.00 points of accuracy below."),
            "{worse}"
        );
        let equal =
            verdict(Metric::Accuracy, &[group(&[run("a", 1, &[0.90001])]), group(&[run("b", 1, &[0.9])])]);
        assert!(equal.starts_with("b and a differ by less than 0.01 points of accuracy."), "{equal}");
        assert_eq!(
            verdict(Metric::Accuracy, &[group(&[run("a", 1, &[0.9])])]),
            "a: there is nothing to compare it with."
        );
    }

    #[test]
    fn it_says_what_the_accuracies_are_means_over() {
        let long = group(&[run("a", 1, &[0.5; 40])]);
        assert_eq!(
            averaging(Metric::Accuracy, &[long]),
            "Accuracies are means over the last 10 evaluated rounds."
        );
        let (short, single) = (group(&[run("a", 1, &[0.5; 8])]), group(&[run("b", 1, &[0.5])]));
        assert_eq!(
            averaging(Metric::Accuracy, &[short, single]),
            "Accuracies are means over the last 1 to 4 evaluated rounds of a run."
        );
    }
}
