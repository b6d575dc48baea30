;; Fills four memories in turn: a host that limits each one gives four times the limit.
;; "polite" tells how many pages it got; "greedy" dies when it gets no more.
(memory $second 1)
(memory $third 1)
(memory $fourth 1)
(func (export "homeostat:policy/router@0.1.0#route") (param $request i32) (result i32)
  (local $mark i32)
  (local.set $mark (call $mark (local.get $request)))
  (if (i32.eqz (call $misbehaves (local.get $mark))) (then (return (call $tell (i32.const 0)))))
  (block $full0 (loop $more (br_if $full0 (i32.eq (memory.grow 0 (i32.const 16)) (i32.const -1))) (br $more)))
  (block $full1 (loop $more (br_if $full1 (i32.eq (memory.grow $second (i32.const 16)) (i32.const -1))) (br $more)))
  (block $full2 (loop $more (br_if $full2 (i32.eq (memory.grow $third (i32.const 16)) (i32.const -1))) (br $more)))
  (block $full3 (loop $more (br_if $full3 (i32.eq (memory.grow $fourth (i32.const 16)) (i32.const -1))) (br $more)))
  (if (call $greedy (local.get $mark)) (then unreachable))
  (call $tell
    (i32.add
      (i32.add (memory.size 0) (memory.size $second))
      (i32.add (memory.size $third) (memory.size $fourth)))))
