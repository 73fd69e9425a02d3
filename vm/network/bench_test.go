package network_test

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
)

// waitReady waits for a slot that was made ahead.
func waitReady(t testing.TB, p *network.Pool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); p.Ready() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no slot was made ahead within 10 s")
		}
	}
}

// BenchmarkAcquire gives out slots that were made ahead.
func BenchmarkAcquire(b *testing.B) {
	w := networktest.New(b, network.Config{Ready: 2})
	for b.Loop() {
		b.StopTimer()
		waitReady(b, w.Pool)
		b.StartTimer()
		s, err := w.Pool.Acquire(context.Background(), "m", vm.Egress{Mode: vm.EgressOpen})
		must(b, err)
		b.StopTimer()
		must(b, s.Close())
		b.StartTimer()
	}
}

// BenchmarkThroughput fetches a large body, straight and through the proxies.
func BenchmarkThroughput(b *testing.B) {
	w := networktest.New(b, network.Config{Inner: true, Limits: vm.NetLimits{Bandwidth: 10e9}})
	w.Name("example.com", networktest.Web)
	for _, bench := range []struct {
		name, url string
		egress    vm.Egress
	}{
		{"open-http", "http://example.com/large", vm.Egress{Mode: vm.EgressOpen}},
		{"allow-http", "http://example.com/large", vm.Egress{Mode: vm.EgressAllow, Allow: []string{"example.com"}}},
		{"open-https", "https://example.com/large", vm.Egress{Mode: vm.EgressOpen}},
		{"allow-https", "https://example.com/large", vm.Egress{Mode: vm.EgressAllow, Allow: []string{"example.com"}}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c := w.Machine(bench.egress).Client(w.TLS)
			b.SetBytes(networktest.Large)
			for b.Loop() {
				resp, err := c.Get(bench.url)
				must(b, err)
				if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != networktest.Large || resp.StatusCode != http.StatusOK {
					b.Fatal(n, resp.Status, err)
				}
				resp.Body.Close()
			}
		})
	}
}
