package network_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestOpen(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	w.Name("example.com", networktest.Web)
	m := w.Machine(vm.Egress{Mode: vm.EgressOpen})
	if code, addrs := m.Ask("example.com.", dnsmessage.TypeA); code != 0 || len(addrs) != 1 {
		t.Fatal(code, addrs)
	}
	conn, err := m.Dial("tcp4", networktest.Web+":5432", 3*time.Second)
	must(t, err)
	b, err := io.ReadAll(conn)
	must(t, err)
	t.Logf("%s", b)
	_, err = m.Dial("tcp4", "10.0.0.5:5432", 3*time.Second)
	t.Log(err)
	t.Log(m.Denials(1), w.Arrived())
}
