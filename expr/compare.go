package expr

import "math"

// Equal is the language's ==. Values of different kinds are compared as numbers; strings without regard to case;
// arrays and objects by identity; NaN equals nothing.
func Equal(x, y Value) bool {
	x, y = coerce(x, y)
	if x.kind != y.kind {
		return false
	}
	switch x.kind {
	case KindNull:
		return true
	case KindBoolean, KindNumber:
		return x.num == y.num
	case KindString:
		return equalFold(x.str, y.str)
	case KindArray:
		return x.arr == y.arr
	default:
		return x.obj == y.obj
	}
}

// The answers of order. Unordered is that of null, NaN, arrays and objects.
const (
	unordered = iota
	before
	same
	after
)

// order compares x and y as < and > do, with the coercions of Equal.
func order(x, y Value) int {
	x, y = coerce(x, y)
	if x.kind != y.kind {
		return unordered
	}
	switch x.kind {
	case KindBoolean, KindNumber:
		switch {
		case math.IsNaN(x.num) || math.IsNaN(y.num):
			return unordered
		case x.num < y.num:
			return before
		case x.num > y.num:
			return after
		}
		return same
	case KindString:
		return same + compareFold(x.str, y.str)
	default:
		return unordered
	}
}

// coerce makes two values comparable: null, booleans and, beside a number, strings become numbers.
// Equal kinds stay as they are, and so do arrays and objects.
func coerce(x, y Value) (Value, Value) {
	if x.kind == y.kind {
		return x, y
	}
	if x.kind == KindNull || x.kind == KindBoolean {
		x = Num(x.num)
	}
	if y.kind == KindNull || y.kind == KindBoolean {
		y = Num(y.num)
	}
	switch {
	case x.kind == KindNumber && y.kind == KindString:
		y = Num(parseNumber(y.str))
	case x.kind == KindString && y.kind == KindNumber:
		x = Num(parseNumber(x.str))
	}
	return x, y
}

// comparison returns how many bytes of text Equal or order may look at.
func comparison(x, y Value) int {
	if x.kind == y.kind {
		return min(len(x.str), len(y.str))
	}
	return len(x.str) + len(y.str)
}
