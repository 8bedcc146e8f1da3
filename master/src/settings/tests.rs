use super::*;
use clap::CommandFactory;
use fl_quant::Bits;
use std::path::PathBuf;

fn name_of(change: impl FnOnce(&mut Config)) -> &'static str {
    let mut config = Config::default();
    change(&mut config);
    config.validate().map_or_else(|error| error.name, |()| "fine")
}

fn checked(args: &[&str]) -> Result<Config, SettingError> {
    Args::parse_from(["fl-master"].iter().chain(args)).check()
}

#[test]
fn the_command_is_well_formed_and_every_setting_has_its_variable() {
    let command = Args::command();
    command.clone().debug_assert();
    for arg in command.get_arguments() {
        let name = arg.get_id().as_str();
        if matches!(name, "check" | "rollback_to" | "health_check" | "help" | "version") {
            continue;
        }
        let variable = arg.get_env().unwrap_or_else(|| panic!("{name} has no variable"));
        assert_eq!(variable.to_str().unwrap(), name.to_uppercase());
        assert_eq!(arg.get_long().unwrap(), name.replace('_', "-"));
        assert!(arg.get_help().is_some(), "{name} has no help");
    }
}

#[test]
fn the_defaults_are_valid() {
    assert_eq!(name_of(|_| ()), "fine");
    assert_eq!(Config::default().round.min_clients, 2);
}

#[test]
fn a_bad_value_is_refused_by_name() {
    assert_eq!(name_of(|c| c.round.min_clients = 0), "AGG_MIN_CLIENTS");
    assert_eq!(name_of(|c| c.round.pause_s = -1.0), "ROUND_PAUSE_S");
    assert_eq!(name_of(|c| c.model.model_dim = 0), "MODEL_DIM");
    assert_eq!(name_of(|c| c.aggregation.server.lr = f64::NAN), "SERVER_LR");
    assert_eq!(name_of(|c| c.token = Some(Secret("a b".into()))), "FL_TOKEN");
    assert_eq!(name_of(|c| c.task.bits = Some(Bits::Width(9))), "BITS");
    assert_eq!(name_of(|c| c.task.quantizer = Some("zip".into())), "QUANTIZER");
    assert_eq!(name_of(|c| c.store.state_dir = PathBuf::new()), "STATE_DIR");
    assert_eq!(name_of(|c| c.limits.max_connections_per_ip = Some(0)), "MAX_CONNECTIONS_PER_IP");
    assert_eq!(name_of(|c| c.limits.write_timeout_s = 0.0), "WRITE_TIMEOUT_S");
    assert_eq!(name_of(|c| c.metrics.max_workers = 1_000_000), "METRICS_MAX_WORKERS");
}

#[test]
fn an_unknown_name_is_refused_with_its_setting() {
    let error = checked(&["--strategy=luck"]).unwrap_err();
    assert_eq!(error.name, "STRATEGY");
    assert!(error.to_string().contains("luck"));
}

#[test]
fn half_of_a_tls_pair_is_refused() {
    let name = |args: &[&str]| checked(args).unwrap_err().name;
    assert_eq!(name(&["--tls-cert=a.pem"]), "TLS_CERT");
    assert_eq!(name(&["--tls-key=a.pem"]), "TLS_KEY");
    assert_eq!(name(&["--tls-client-ca=a.pem"]), "TLS_CLIENT_CA");
}

#[test]
fn what_is_not_set_follows_from_what_is() {
    let clients = |args: &[&str]| checked(args).unwrap().round.min_clients;
    assert_eq!(clients(&["--strategy=fedbuff:7"]), 7);
    assert_eq!(clients(&["--clients-per-round=5"]), 5);
    assert_eq!(clients(&["--clients-per-round=5", "--agg-min-clients=4"]), 4);
    let per_ip = |args: &[&str]| checked(args).unwrap().limits.max_connections_per_ip;
    assert_eq!(per_ip(&["--max-connections=100"]), Some(50));
    assert_eq!(per_ip(&["--max-connections=1"]), Some(1));
    assert_eq!(per_ip(&["--max-connections-per-ip=0"]), None);
    let lr = |strategy: &str| checked(&[strategy]).unwrap().aggregation.server.lr;
    assert_eq!([lr("--strategy=fedavg"), lr("--strategy=fedadam")], [1.0, 0.01]);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let sample = |c: &mut Config| {
        c.round.clients_per_round = Some(5);
        c.round.min_clients = 7;
    };
    assert_eq!(name_of(sample), "AGG_MIN_CLIENTS");
    let oversample = |c: &mut Config| {
        sample(c);
        c.round.overselect = 1.5;
    };
    assert_eq!(name_of(oversample), "fine");
    let deadline = |c: &mut Config| {
        c.round.deadline_s = Some(1.0);
        c.round.min_at_deadline = 3;
    };
    assert_eq!(name_of(deadline), "ROUND_MIN_AT_DEADLINE");
    let sized = |c: &mut Config| {
        c.task.uplink_mbit = Some(1.0);
        c.task.bits = Some(Bits::Width(4));
    };
    assert_eq!(name_of(sized), "BITS");
}

#[test]
fn a_strategy_that_the_rounds_cannot_serve_is_refused() {
    let with = |strategy: &str, clients: usize| {
        name_of(|c| {
            c.aggregation.strategy = strategy.parse().unwrap();
            c.round.min_clients = clients;
        })
    };
    assert_eq!([with("krum:2", 6), with("krum:2", 7)], ["STRATEGY", "fine"]);
    assert_eq!([with("multikrum:2:6", 7), with("multikrum:2:6", 8)], ["STRATEGY", "fine"]);
    assert_eq!([with("trimmed_mean:2", 4), with("trimmed_mean:2", 5)], ["STRATEGY", "fine"]);
    assert_eq!([with("fedbuff:3", 2), with("fedbuff:3", 3)], ["STRATEGY", "fine"]);
    let lazy = |strategy: &str| {
        name_of(|c| {
            c.aggregation.strategy = strategy.parse().unwrap();
            c.aggregation.lazy = Some(0.8);
        })
    };
    assert_eq!(["fedavg", "median", "scaffold:3", "fedbuff:2"].map(lazy), ["fine", "fine", "LAZY", "LAZY"]);
    let mut config = Config::default();
    config.aggregation.strategy = Strategy::Median;
    config.round.min_clients = 10;
    assert!(config.check_memory(12_800_000).is_ok(), "512 MB fit");
    assert_eq!(config.check_memory(12_800_001).unwrap_err().name, "MAX_BUFFER_MB");
}

#[test]
fn a_rollback_is_a_command_of_its_own() {
    let parse = |args: &[&str]| Args::try_parse_from(["fl-master"].iter().chain(args));
    assert_eq!(parse(&["--rollback-to", "3"]).unwrap().rollback_to, Some(3));
    assert!(parse(&["--rollback-to", "3", "--check"]).is_err());
    assert!(parse(&["--rollback-to"]).is_err());
}
