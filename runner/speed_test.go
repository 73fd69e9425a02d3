package runner

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

// nobody is a sink that is never full.
type nobody struct{ lines, bytes int }

func (n *nobody) Line(l tgr.LogLine) { n.lines++; n.bytes += len(l.Text) }
func (n *nobody) Steps([]tgr.Step)   {}

// BenchmarkOutput measures what a byte of a step's output costs here, with no secret and with many.
func BenchmarkOutput(b *testing.B) {
	const line = "the quick brown fox jumps over the lazy dog and runs away from here again\n"
	chunk := []byte(strings.Repeat(line, 64<<10/len(line)))
	for _, secrets := range []int{0, 20, 500} {
		b.Run(fmt.Sprint(secrets), func(b *testing.B) {
			r := &run{mask: newMasker(1000, 4<<20), config: Config{Sink: &nobody{}, Now: time.Now, Limits: Limits{}.orDefaults()}}
			for i := range secrets {
				if err := r.addMask(fmt.Sprintf("ghs_%036d", i*7919)); err != nil {
					b.Fatal(err)
				}
			}
			o := newOutput(&unit{run: r, rec: &record{}})
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				if _, err := o.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The filter in front of the automaton says no only where there is nothing.
func TestFilter(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	word := func(n int) string {
		var b bytes.Buffer
		for range n {
			b.WriteByte("abcAB "[r.IntN(6)])
		}
		return b.String()
	}
	for range 300 {
		m := newMasker(1000, 1<<20)
		var values []string
		for range 1 + r.IntN(6) {
			values = append(values, word(1+r.IntN(40)))
			if err := m.add(values[len(values)-1]); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				v := values[r.IntN(len(values))]
				text := word(r.IntN(50)) + v + word(r.IntN(50))
				if strings.TrimSpace(v) != "" && !m.contains(text) {
					t.Fatalf("%q is not found in %q, with %q", v, text, values)
				}
			}
		}
	}
}
