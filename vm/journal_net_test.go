package vm

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Only what is named as ours is ever written down, or removed on the word of a journal.
func TestNetItemRefuses(t *testing.T) {
	r, err := Journal{Dir: t.TempDir()}.Open("one", "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []NetItem{
		{}, {Kind: NetLink, Name: "eth0"}, {Kind: NetLink, Name: "tg"}, {Kind: NetNamespace, Name: "tg/../x"}, {Kind: NetNamespace, Name: "../tgx"},
		{Kind: NetLink, Name: "tg34567890123456"}, {Kind: "disk", Name: "tgx"}, {Kind: NetLink, Name: "tgx", In: "relative"}, {Kind: NetNamespace, Name: "tgx", In: "/run/netns/a"},
	} {
		if err := r.AddNetwork(n); err == nil {
			t.Errorf("%+v was written down", n)
		}
		if err := n.Remove(); err == nil {
			t.Errorf("%+v was removed", n)
		}
	}
	f, err := os.OpenFile(filepath.Join(r.Dir(), journalFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(`{"network":{"kind":"link","name":"eth0"}}` + "\n"); err != nil {
		t.Fatal(err)
	}
	if e, err := readEntry(r.Dir()); err != nil || len(e.Network) > 0 {
		t.Errorf("%+v, %v: want no network", e, err)
	}
	if err := r.Free(context.Background()); err != nil {
		t.Error(err)
	}
}

// What is not there, or in a namespace that is not, is removed.
func TestNetItemGone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: the host's network needs root")
	}
	items := []NetItem{
		{Kind: NetNamespace, Name: "tgnotthere1"}, {Kind: NetLink, Name: "tgnotthere1"}, {Kind: NetTable, Name: "tgnotthere1"},
		{Kind: NetLink, Name: "tgnotthere1", In: NamespacePath("tgnotthere2")}, {Kind: NetTable, Name: "tgnotthere1", In: NamespacePath("tgnotthere2")},
	}
	dir := t.TempDir()
	r, err := Journal{Dir: dir}.Open("one", "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddNetwork(items...); err != nil {
		t.Fatal(err)
	}
	e, err := readEntry(r.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(items, e.Network); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	// A namespace whose file was made, and nothing mounted yet, is what a crash leaves.
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(NamespacePath("tgnotthere1"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Free(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(NamespacePath("tgnotthere1")); !os.IsNotExist(err) {
		t.Errorf("the namespace's file: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestDenialString(t *testing.T) {
	for want, d := range map[string]Denial{
		"denied tcp to 10.0.0.1:5432 (private range)":                             {Proto: "tcp", Addr: netip.MustParseAddrPort("10.0.0.1:5432"), Reason: "private range"},
		"denied dns to evil.example (not on the allow list)":                      {Proto: "dns", Name: "evil.example", Reason: "not on the allow list"},
		"denied icmp to 10.0.0.1 (private range)":                                 {Proto: "icmp", Addr: netip.MustParseAddrPort("10.0.0.1:0"), Reason: "private range"},
		"denied tcp to a.example at 169.254.169.254:443 (cloud metadata service)": {Proto: "tcp", Name: "a.example", Addr: netip.MustParseAddrPort("169.254.169.254:443"), Reason: "cloud metadata service"},
		"denied dns to a.example at 10.0.0.1 (private range)":                     {Proto: "dns", Name: "a.example", Addr: netip.MustParseAddrPort("10.0.0.1:0"), Reason: "private range"},
	} {
		if got := d.String(); got != want || strings.Contains(got, "\n") {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
