//! Addresses of this machine: an IP address with a port, or a name that has just one.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, ToSocketAddrs},
};

/// Reads an address, and looks a name up.
pub(super) fn one(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let names_a_port = |it: (&str, &str)| !it.0.is_empty() && it.1.parse::<u16>().is_ok();
    if !text.rsplit_once(':').is_some_and(names_a_port) {
        return Err("write ADDRESS:PORT, such as 10.0.0.1:7400 or [::1]:7400".to_owned());
    }
    let found =
        text.to_socket_addrs().map_err(|error| format!("the name is not known: {error}"))?;
    only(found.collect())
}

/// Which of several a node should listen on, or tell others, is nothing to guess.
fn only(found: BTreeSet<SocketAddr>) -> Result<SocketAddr, String> {
    match found.iter().collect::<Vec<_>>()[..] {
        [address] => Ok(*address),
        [] => Err("the name has no address".to_owned()),
        _ => {
            let all: Vec<_> = found.iter().map(ToString::to_string).collect();
            Err(format!("the name has several addresses, say which: {}", all.join(" or ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_as_it_is() {
        for text in ["10.0.0.1:7400", "[::1]:0", "0.0.0.0:1"] {
            assert_eq!(one(text).unwrap().to_string(), text);
        }
        for wrong in ["7400", "10.0.0.1", ":7400", "host:port", "host:99999", ""] {
            assert!(one(wrong).unwrap_err().starts_with("write ADDRESS:PORT"), "{wrong}");
        }
    }

    #[test]
    fn a_name_has_one_address() {
        let found = |all: &[&str]| only(all.iter().map(|it| it.parse().unwrap()).collect());
        let (four, six) = ("127.0.0.1:7400", "[::1]:7400");
        // A resolver may name one address more than once.
        assert_eq!(found(&[four, four]).unwrap().to_string(), four);
        assert_eq!(found(&[]).unwrap_err(), "the name has no address");
        let several = found(&[six, four]).unwrap_err();
        assert!(several.ends_with("say which: 127.0.0.1:7400 or [::1]:7400"), "{several}");
    }

    #[test]
    fn this_machine_has_a_name() {
        let found = one("localhost:7400");
        assert!(
            found.as_ref().map_or_else(|it| it.contains("say which"), |it| it.ip().is_loopback())
        );
    }
}
