package guest

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is written comes out once, in order and apart, for a reader that stops and goes on elsewhere.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type write struct {
			kind kind
			data []byte
		}
		writes := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) write {
			n := rapid.SampledFrom([]int{0, 1, 7, 4095, 4096, 4097, maxData, maxOutput}).Draw(t, "size")
			return write{rapid.SampledFrom([]kind{kStdout, kStderr}).Draw(t, "kind"), bytes.Repeat([]byte{byte(n)}, n)}
		}), 1, 100).Draw(t, "writes")
		breaks := rapid.SliceOfN(rapid.IntRange(1, 20), 0, 5).Draw(t, "breaks")

		r := newRing()
		var writer sync.WaitGroup
		writer.Go(func() {
			for i, w := range writes {
				w.data = append(w.data, byte(i))
				r.write(w.kind, w.data[:min(len(w.data), maxOutput)])
			}
			r.close()
		})
		var got [2]bytes.Buffer
		seq := uint64(0)
		for {
			c, err := r.from(seq)
			if err != nil {
				t.Fatal(err)
			}
			left := 1 << 30
			if len(breaks) > 0 {
				left, breaks = breaks[0], breaks[1:]
			}
			ok := true
			for ; ok && left > 0; left-- {
				var k kind
				var at uint64
				var b []byte
				if k, at, b, ok = r.next(c); !ok {
					break
				}
				if at != seq {
					t.Fatalf("byte %d, want %d", at, seq)
				}
				got[k-kStdout].Write(b)
				seq += uint64(len(b))
				r.ack(seq)
			}
			if !ok {
				break
			}
			r.stop(c)
		}
		writer.Wait()
		var want [2]bytes.Buffer
		for i, w := range writes {
			w.data = append(w.data, byte(i))
			want[w.kind-kStdout].Write(w.data[:min(len(w.data), maxOutput)])
		}
		for i := range want {
			if !bytes.Equal(got[i].Bytes(), want[i].Bytes()) {
				t.Fatalf("stream %d: %d bytes, want %d", i, got[i].Len(), want[i].Len())
			}
		}
	})
}

// What the host has acked is kept for a while, and what is needed no more makes room.
func TestRingHistory(t *testing.T) {
	r := newRing()
	chunk := make([]byte, maxOutput)
	total := uint64(0)
	for range 3 * ringSize / maxOutput {
		r.write(kStdout, chunk)
		total += maxOutput
		r.ack(total)
	}
	if r.cost > ringSize {
		t.Errorf("%d bytes are kept, the limit is %d", r.cost, ringSize)
	}
	if _, err := r.from(total - ringWindow); err != nil {
		t.Errorf("a window back: %v", err)
	}
	if _, err := r.from(0); !errors.Is(err, ErrGone) {
		t.Errorf("the beginning: %v, want ErrGone", err)
	}
	if _, err := r.from(total + 1); !errors.Is(err, ErrRefused) {
		t.Errorf("the future: %v, want ErrRefused", err)
	}
	r.ack(total + 1000) // a number that the host cannot have
	if r.acked != total {
		t.Errorf("acked %d, want %d", r.acked, total)
	}
}

// Small writes that alternate between the streams cost memory beside their bytes, and are bounded all the same.
func TestRingSmall(t *testing.T) {
	r := newRing()
	for i := range 2 * ringSize / chunkMin {
		r.write(kStdout+kind(i%2), []byte("x"))
		r.ack(r.end)
	}
	if r.cost > ringSize || len(r.chunks) > ringSize/chunkMin {
		t.Errorf("%d chunks cost %d", len(r.chunks), r.cost)
	}
	r.discard()
	for range 10 {
		r.write(kStdout, make([]byte, maxOutput)) // does not block
	}
}
