;; Reads behind the end of its memory, where a neighbour's might lie.
(func (export "homeostat:policy/router@0.1.0#route") (param $request i32) (result i32)
  (if (call $misbehaves (call $mark (local.get $request)))
    (then (return (call $tell (i32.load (i32.shl (memory.size 0) (i32.const 16)))))))
  (call $tell (i32.const 0)))
