use proc_pool::Process;
fn square(x: u64) -> u64 {
    x * x
}
#[test]
fn a_result_comes_back() {
    let child = Process::spawn(square, 12).expect("spawned");
    assert_eq!(child.join(), Ok(144));
}
