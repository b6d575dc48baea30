;; Divides by a number that it reads from memory: zero.
(func (export "homeostat:policy/router@0.1.0#route") (param $request i32) (result i32)
  (if (call $misbehaves (call $mark (local.get $request)))
    (then (drop (i32.div_u (i32.const 1) (i32.load (i32.const 8188))))))
  (call $tell (i32.const 0)))
