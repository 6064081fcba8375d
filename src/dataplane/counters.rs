//! Counters that have a value for each CPU, many rows at a time: ten thousand backends are a handful of system calls.

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapHandle};

use super::batch;
use super::tables::from_bytes;
use super::types::{lb_backend_counters, lb_counter};

/// Rows of a batch; each is a value for each CPU.
const BATCH: usize = 1024;
const ROW: usize = size_of::<lb_backend_counters>();

/// The counters of every backend, by index, over all CPUs.
pub(super) fn of_all_backends(map: &MapHandle) -> Result<Vec<lb_backend_counters>> {
    let of_row = batch::value_bytes(map).context("could not find out how many CPUs there are")?;
    let rows = map.max_entries() as usize;
    let mut all = Vec::with_capacity(rows);
    let mut keys = vec![0; BATCH * size_of::<u32>()];
    let mut values = vec![0; BATCH * of_row];
    let mut from = None;
    while all.len() < rows {
        let (count, next) = batch::read(map, from, &mut keys, &mut values)
            .with_context(|| format!("could not read the counters of backends from row {} on", all.len()))?;
        for row in values.chunks_exact(of_row).take(count) {
            let of_cpus: Result<Vec<lb_backend_counters>> = row.chunks_exact(ROW).map(from_bytes).collect();
            all.push(of_cpus?.into_iter().fold(lb_backend_counters::default(), sum));
        }
        if next.is_none() || count == 0 {
            break;
        }
        from = next;
    }
    all.resize(rows, lb_backend_counters::default());
    Ok(all)
}

/// How many figures there are of a backend.
pub(super) const WORDS: usize = 5;

/// The figures one after the other.
pub(super) fn words_of(counters: lb_backend_counters) -> [u64; WORDS] {
    let lb_backend_counters { connections, to_backend: to, to_client: from, .. } = counters;
    [connections, to.packets, to.bytes, from.packets, from.bytes]
}

/// The same back.
pub(super) fn of_words(words: [u64; WORDS]) -> lb_backend_counters {
    let [connections, packets, bytes, answers, answered] = words;
    lb_backend_counters {
        connections,
        to_backend: lb_counter { packets, bytes },
        to_client: lb_counter { packets: answers, bytes: answered },
        ..Default::default()
    }
}

/// What came between two looks.
pub(super) fn difference(now: lb_backend_counters, before: lb_backend_counters) -> lb_backend_counters {
    let mut words = words_of(now);
    words.iter_mut().zip(words_of(before)).for_each(|(now, before)| *now = now.wrapping_sub(before));
    of_words(words)
}

/// What two of them counted together.
pub(super) fn sum(a: lb_backend_counters, b: lb_backend_counters) -> lb_backend_counters {
    let mut words = words_of(a);
    words.iter_mut().zip(words_of(b)).for_each(|(sum, word)| *sum = sum.wrapping_add(word));
    of_words(words)
}

#[cfg(test)]
mod tests {
    use libbpf_rs::{MapFlags, MapType};

    use super::*;
    use crate::dataplane::tables::as_bytes;

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_every_row_is_read_with_every_cpu() {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let size = size_of::<lb_backend_counters>() as u32;
        let cpus = libbpf_rs::num_possible_cpus().unwrap() as u64;
        for rows in [1, BATCH as u32, 2 * BATCH as u32 + 7] {
            let map =
                MapHandle::create(MapType::PercpuArray, Some("counters"), 4, size, rows, &options).unwrap();
            for row in 0..rows {
                let value = |cpu: u64| {
                    let to_backend = lb_counter { packets: u64::from(row) + cpu, bytes: 2 };
                    let counters = lb_backend_counters { to_backend, connections: 1, ..Default::default() };
                    as_bytes(&counters).to_vec()
                };
                let values: Vec<_> = (0..cpus).map(value).collect();
                map.update_percpu(&row.to_ne_bytes(), &values, MapFlags::ANY).unwrap();
            }
            let all = of_all_backends(&map).unwrap();
            assert_eq!(all.len(), rows as usize);
            for (row, counters) in all.iter().enumerate() {
                let packets = row as u64 * cpus + cpus * (cpus - 1) / 2;
                assert_eq!((counters.to_backend.packets, counters.to_backend.bytes), (packets, 2 * cpus));
                assert_eq!((counters.connections, counters.to_client.packets), (cpus, 0));
            }
        }
    }
}
