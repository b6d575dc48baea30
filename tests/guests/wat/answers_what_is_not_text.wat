;; Its message is not UTF-8.
(func (export "homeostat:policy/router@0.1.0#route") (param $request i32) (result i32)
  (drop (call $tell (i32.const 0)))
  (if (call $misbehaves (call $mark (local.get $request)))
    (then (i32.store (i32.const 2048) (i32.const 0xfffefdfc))))
  (i32.const 1024))
