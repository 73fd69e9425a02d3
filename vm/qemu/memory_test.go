package qemu

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMaps(t *testing.T) {
	got := parseMaps([]byte(`55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000200000 rw-p 00000000 00:01 2053                       /memfd:tgr-snapshot (deleted)
7f0000200000-7f0000300000 rw-p 00200000 00:01 2053                       /memfd:tgr-snapshot (deleted)
7f1000000000-7f1000200000 rw-s 00000000 00:01 2054                       /memfd:tgr-snapshot (deleted)
nonsense
`))
	want := []region{{0x7f0000000000, 0x200000, 0}, {0x7f0000200000, 0x100000, 0x200000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(region{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for at, wantN := range map[int64]int64{0: 0x200000, 0x1ff000: 0x1000, 0x200000: 0x100000, 0x300000: 0} {
		addr, n := place(got, at)
		if n != wantN || n > 0 && addr != 0x7f0000000000+at {
			t.Errorf("byte %#x is at %#x, %#x follow", at, addr, n)
		}
	}
}

func TestOwnPages(t *testing.T) {
	const pages = 10000 // more than are read at once
	own := map[int]uint64{0: pagePresent, 1: pagePresent, 4095: pagePresent, 4096: pageSwapped, 9999: pagePresent}
	var b bytes.Buffer
	b.Write(make([]byte, 8*5)) // what is mapped below
	for i := range pages {
		bits := uint64(0)
		if i%3 == 0 {
			bits = pagePresent | pageOfFile
		}
		if o, ok := own[i]; ok {
			bits = o
		}
		b.Write(binary.NativeEndian.AppendUint64(nil, bits))
	}
	var got [][2]int64
	err := ownPages(bytes.NewReader(b.Bytes()), region{addr: 5 * pageSize, size: pages * pageSize}, func(at, n int64) error {
		got = append(got, [2]int64{at / pageSize, n / pageSize})
		return nil
	})
	if diff := cmp.Diff([][2]int64{{0, 2}, {4095, 2}, {9999, 1}}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if err := ownPages(bytes.NewReader(nil), region{size: pageSize}, nil); err != io.EOF {
		t.Errorf("no pagemap: %v", err)
	}
}
