//! What a shell and `man` know of a command: made by the command itself, so that it is never out of
//! date.

use std::io;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

/// What the two subcommands print.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// To standard output.
    Print(Vec<u8>),
    /// Pages were written to this directory.
    Written(PathBuf),
}

/// Adds the subcommands `completions` and `man`. One without subcommands of its own needs none of
/// its arguments beside them.
pub(crate) fn extended(command: Command) -> Command {
    let shell = Arg::new("shell")
        .help("The shell that is to complete the command")
        .required(true)
        .value_parser(value_parser!(Shell));
    let directory = Arg::new("dir")
        .help("Writes this page and one for each subcommand into a directory")
        .long("dir")
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf));
    let completions = Command::new("completions")
        .about("Prints what a shell needs to complete this command")
        .arg(shell);
    let man = Command::new("man")
        .about("Prints the manual page, or writes all of them into a directory")
        .arg(directory);
    let is_alone = !command.has_subcommands();
    let command = command.subcommands([completions, man]);
    if is_alone {
        let command = command.subcommand_negates_reqs(true);
        command.args_conflicts_with_subcommands(true)
    } else {
        command
    }
}

/// Carries out `completions` or `man`, if `matches` asks for one of them.
///
/// # Errors
/// A page cannot be written.
pub(crate) fn answer(command: &Command, matches: &ArgMatches) -> io::Result<Option<Answer>> {
    let mut command = command.clone();
    let name = command.get_name().to_owned();
    match matches.subcommand() {
        Some(("completions", matches)) => {
            let Some(shell) = matches.get_one::<Shell>("shell") else {
                return Ok(None);
            };
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command, name, &mut script);
            Ok(Some(Answer::Print(script)))
        }
        Some(("man", matches)) => {
            let Some(directory) = matches.get_one::<PathBuf>("dir") else {
                let mut page = Vec::new();
                clap_mangen::Man::new(command).render(&mut page)?;
                return Ok(Some(Answer::Print(page)));
            };
            std::fs::create_dir_all(directory)?;
            clap_mangen::generate_to(command, directory)?;
            Ok(Some(Answer::Written(directory.clone())))
        }
        Some(_) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

    use super::*;

    /// Asks something.
    #[derive(Debug, Parser)]
    #[command(name = "asks")]
    struct Plain {
        /// What to ask for.
        eid: String,
        /// Whom.
        #[arg(long)]
        server: String,
    }

    /// Does something.
    #[derive(Debug, Parser)]
    #[command(name = "does")]
    struct WithCommands {
        #[command(subcommand)]
        command: Doing,
    }

    #[derive(Debug, Subcommand)]
    enum Doing {
        /// Runs.
        Run,
    }

    fn asked<A: CommandFactory>(words: &[&str]) -> Option<Answer> {
        let command = extended(A::command());
        let matches = command.clone().try_get_matches_from(words).unwrap();
        answer(&command, &matches).unwrap()
    }

    fn printed(answer: Option<Answer>) -> String {
        match answer {
            Some(Answer::Print(bytes)) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_shell_gets_its_completions_and_man_its_page() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = printed(asked::<WithCommands>(&["does", "completions", shell]));
            assert!(script.contains("does") && script.contains("run"), "{shell}");
            let script = printed(asked::<Plain>(&["asks", "completions", shell]));
            assert!(script.contains("server"), "{shell}");
        }
        let page = printed(asked::<Plain>(&["asks", "man"]));
        assert!(
            page.contains("What to ask for") && page.contains(".TH asks 1"),
            "{page}"
        );
    }

    #[test]
    fn all_pages_are_written_into_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("man1");
        let words = ["does", "man", "--dir", to.to_str().unwrap()];
        assert_eq!(
            asked::<WithCommands>(&words),
            Some(Answer::Written(to.clone()))
        );
        for page in ["does.1", "does-run.1", "does-completions.1"] {
            assert!(to.join(page).exists(), "{page}");
        }
    }

    #[test]
    fn what_the_command_is_for_is_as_before() {
        let command = extended(Plain::command());
        let of = |words: &[&str]| command.clone().try_get_matches_from(words);
        let matches = of(&["asks", "10.0.0.2", "--server", "192.0.2.1"]).unwrap();
        assert_eq!(answer(&command, &matches).unwrap(), None);
        let plain = Plain::from_arg_matches(&matches).unwrap();
        assert_eq!(
            (plain.eid.as_str(), plain.server.as_str()),
            ("10.0.0.2", "192.0.2.1")
        );
        let error = of(&["asks", "10.0.0.2"]).unwrap_err().to_string();
        assert!(error.contains("--server"), "{error}");
        let command = extended(WithCommands::command());
        let matches = command
            .clone()
            .try_get_matches_from(["does", "run"])
            .unwrap();
        assert_eq!(answer(&command, &matches).unwrap(), None);
        assert!(WithCommands::from_arg_matches(&matches).is_ok());
        assert!(command.try_get_matches_from(["does"]).is_err());
    }
}
