;; Grows two tables: their elements live in the host's memory.
;; "polite" tells how many elements it got; "greedy" dies when it gets no more.
(table $first 1 funcref)
(table $second 1 funcref)
(func (export "homeostat:policy/router@0.1.0#route") (param $request i32) (result i32)
  (local $mark i32)
  (local.set $mark (call $mark (local.get $request)))
  (if (i32.eqz (call $misbehaves (local.get $mark))) (then (return (call $tell (i32.const 0)))))
  (block $full0 (loop $more
    (br_if $full0 (i32.eq (table.grow $first (ref.null func) (i32.const 500)) (i32.const -1))) (br $more)))
  (block $full1 (loop $more
    (br_if $full1 (i32.eq (table.grow $second (ref.null func) (i32.const 500)) (i32.const -1))) (br $more)))
  (if (call $greedy (local.get $mark)) (then unreachable))
  (call $tell (i32.add (table.size $first) (table.size $second))))
