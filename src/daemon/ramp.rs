//! Slow start: weights for now, while a backend that came back gets less than its share. Pure.

use crate::model::Weight;

/// One backend of a service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    /// Its weight in the end.
    pub weight: Weight,
    /// Which part of its time has passed, 0 to 1; `None`: it is not starting slowly.
    pub done: Option<f64>,
}

/// Weights are whole numbers: small ones are multiplied by this, so that there is something below them.
const FINER: f64 = 10.0;

/// What each backend of a service weighs for now; `None`: its own weight. Nobody weighs anything else once no backend is
/// starting slowly any more.
pub fn shares(backends: &[Ramp]) -> Vec<Option<Weight>> {
    let is_rising = |ramp: &Ramp| ramp.done.is_some_and(|done| done < 1.0);
    if !backends.iter().any(is_rising) {
        return vec![None; backends.len()];
    }
    let heaviest = backends.iter().map(|ramp| ramp.weight).max().unwrap_or_default();
    let finer = if f64::from(heaviest.get()) * FINER <= f64::from(Weight::MAX.get()) { FINER } else { 1.0 };
    let share = |ramp: &Ramp| {
        let part = ramp.done.map_or(1.0, |done| done.clamp(0.0, 1.0));
        let share = (f64::from(ramp.weight.get()) * finer * part).round();
        Weight::new(share.clamp(1.0, f64::from(Weight::MAX.get())) as u8)
    };
    backends.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(weight: u8, done: Option<f64>) -> Ramp {
        Ramp { weight: Weight::new(weight).unwrap(), done }
    }

    fn numbers(backends: &[Ramp]) -> Vec<Option<u8>> {
        shares(backends).into_iter().map(|share| share.map(Weight::get)).collect()
    }

    #[test]
    fn one_rises_among_others() {
        assert_eq!(numbers(&[ramp(1, None), ramp(1, Some(0.0))]), [Some(10), Some(1)]);
        assert_eq!(numbers(&[ramp(1, None), ramp(1, Some(0.5))]), [Some(10), Some(5)]);
        assert_eq!(numbers(&[ramp(50, None), ramp(30, Some(0.5))]), [Some(50), Some(15)]);
        assert_eq!(numbers(&[ramp(100, Some(0.001)), ramp(1, Some(0.9))]), [Some(1), Some(1)]);
    }

    #[test]
    fn in_the_end_all_weigh_what_they_should() {
        assert_eq!(numbers(&[ramp(1, None), ramp(7, Some(1.0))]), [None, None]);
        assert_eq!(numbers(&[ramp(1, None)]), [None]);
        assert_eq!(numbers(&[]), []);
    }
}
