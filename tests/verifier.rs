//! The kernel takes every program in every profile.

use xdp_lb::dataplane::{Budget, kernel_release, verify_all};

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_every_profile_is_verified() {
    let all = verify_all().unwrap();
    let names: Vec<&str> = all.iter().map(|verified| verified.program.as_str()).collect();
    let expected = [
        "xdp_lb (native)",
        "xdp_lb (native, explains)",
        "xdp_lb (native_virtual)",
        "xdp_lb (native_virtual, explains)",
        "xdp_lb (skb)",
        "xdp_lb (skb, explains)",
        "xdp_lb (skb_direct)",
        "xdp_lb (skb_direct, explains)",
        "xdp_peer",
        "lb_clock",
    ];
    assert_eq!(names, expected);
    for verified in &all {
        assert!(verified.instructions > 0 && verified.instructions < 1_000_000, "{verified:?}");
    }
    let budget = Budget::for_kernel(kernel_release().unwrap()).unwrap();
    if !budget.is_known() {
        eprintln!("SKIPPED: no budget for {}", budget.pair);
    }
    budget.check(&all).unwrap();
}
