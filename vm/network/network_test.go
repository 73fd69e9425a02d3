package network

import (
	"io"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/terraphim/tgr/vm"
)

func TestOpen(t *testing.T) {
	w := newInternet(t, Config{Inner: true, Ready: 1})
	w.name("example.com", web)
	m := w.machine(vm.Egress{Mode: vm.EgressOpen})
	if code, addrs := m.ask("example.com.", dnsmessage.TypeA); code != 0 || len(addrs) != 1 {
		t.Fatal(code, addrs)
	}
	conn, err := m.dial("tcp4", web+":5432", 3*time.Second)
	must(t, err)
	b, err := io.ReadAll(conn)
	must(t, err)
	t.Logf("%s", b)
	_, err = m.dial("tcp4", "10.0.0.5:5432", 3*time.Second)
	t.Log(err)
	t.Log(m.denials(1), w.arrived())
}
