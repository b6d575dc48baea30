;; While the host hands it an answer, its allocator asks the host the same again.
(import "homeostat:policy/models@0.1.0" "names" (func $names (param i32)))
(func (export "cabi_import_realloc") (param i32 i32 i32 i32) (result i32)
  (call $names (i32.const 4096))
  (i32.const 16384))
(func (export "homeostat:policy/router@0.1.0#route") (param $request i32) (result i32)
  (if (call $misbehaves (call $mark (local.get $request)))
    (then (call $names (i32.const 4096))))
  (call $tell (i32.const 0)))
