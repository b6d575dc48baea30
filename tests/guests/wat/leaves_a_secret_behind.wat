;; Tells how many words of its memory are not zero, then fills it with a pattern for
;; whoever gets the memory next.
(func (export "homeostat:policy/router@0.1.0#route") (param $request i32) (result i32)
  (local $at i32) (local $dirty i32)
  (if (i32.eqz (call $misbehaves (call $mark (local.get $request))))
    (then (return (call $tell (i32.const 0)))))
  (drop (memory.grow 0 (i32.const 32)))
  (local.set $at (i32.and (i32.add (global.get $next) (i32.const 8)) (i32.const -8)))
  (block $end
    (loop $word
      (br_if $end (i32.ge_u (local.get $at) (i32.shl (memory.size 0) (i32.const 16))))
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0))
        (then (local.set $dirty (i32.add (local.get $dirty) (i32.const 1)))))
      (i64.store (local.get $at) (i64.const 0x5ec2e75ec2e75ec2))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br $word)))
  (call $tell (local.get $dirty)))
