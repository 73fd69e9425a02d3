package results

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/terraphim/tgr"
)

// decodeProto reads a protobuf message; unknown fields are passed over. Cache clients that are not GitHub's send them.
func decodeProto(b []byte, m message) error {
	known := map[protowire.Number]any{}
	m.fields(func(num int, field any) { known[protowire.Number(num)] = field })
	broken := func(n int) error {
		return tgr.Errorf("results.twirp", tgr.Invalid, "the request is no protobuf message: %w", protowire.ParseError(n))
	}
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return broken(n)
		}
		b = b[n:]
		switch kind {
		case protowire.BytesType:
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n >= 0 {
				switch field := known[num].(type) {
				case *string:
					*field = string(v)
				case *[]string:
					*field = append(*field, string(v))
				}
			}
		case protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			if field, ok := known[num].(*number); ok && n >= 0 {
				*field = number(v)
			}
		default:
			n = protowire.ConsumeFieldValue(num, kind, b)
		}
		if n < 0 {
			return broken(n)
		}
		b = b[n:]
	}
	return nil
}

// encodeProto writes a message, without the fields that have their zero value.
func encodeProto(m message) []byte {
	var b []byte
	str := func(num int, s string) {
		b = protowire.AppendTag(b, protowire.Number(num), protowire.BytesType)
		b = protowire.AppendString(b, s)
	}
	varint := func(num int, v uint64) {
		if v != 0 {
			b = protowire.AppendTag(b, protowire.Number(num), protowire.VarintType)
			b = protowire.AppendVarint(b, v)
		}
	}
	m.fields(func(num int, field any) {
		switch field := field.(type) {
		case *string:
			if *field != "" {
				str(num, *field)
			}
		case *[]string:
			for _, s := range *field {
				str(num, s)
			}
		case *number:
			varint(num, uint64(*field))
		case *bool:
			varint(num, protowire.EncodeBool(*field))
		}
	})
	return b
}
