;; Spends its time inside single instructions that take milliseconds each.
(func (export "homeostat:policy/router@0.1.0#route") (param $request i32) (result i32)
  (if (i32.eqz (call $misbehaves (call $mark (local.get $request))))
    (then (return (call $tell (i32.const 0)))))
  (drop (memory.grow 0 (i32.const 800)))
  (loop $for_ever
    (memory.fill 0 (i32.const 131072) (i32.const 7) (i32.const 0x3200000))
    (br $for_ever))
  unreachable)
