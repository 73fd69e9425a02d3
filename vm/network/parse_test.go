package network

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
	"pgregory.net/rapid"

	"github.com/terraphim/tgr/vm"
)

func TestRefusal(t *testing.T) {
	for _, tt := range []struct{ addr, want string }{
		{"8.8.8.8", ""}, {"203.0.113.80", ""}, {"1.1.1.1", ""}, {"172.32.0.1", ""}, {"172.15.255.255", ""}, {"223.255.255.255", ""},
		{"0.0.0.0", reasonReserved}, {"10.255.255.255", reasonPrivate}, {"100.64.0.1", reasonCGNAT}, {"100.127.255.255", reasonCGNAT}, {"100.128.0.0", ""},
		{"127.0.0.1", reasonLoopback}, {"169.254.0.1", reasonLinkLocal}, {"169.254.169.254", reasonMetadata}, {"168.63.129.16", reasonMetadata},
		{"172.16.0.1", reasonPrivate}, {"172.31.255.255", reasonPrivate}, {"192.0.0.8", reasonReserved}, {"192.168.255.255", reasonPrivate},
		{"198.18.0.1", reasonMachines}, {"198.19.255.255", reasonMachines}, {"224.0.0.1", reasonMulticast}, {"239.255.255.250", reasonMulticast},
		{"240.0.0.0", reasonReserved}, {"255.255.255.255", reasonReserved},
		{"::", reasonLoopback}, {"::1", reasonLoopback}, {"fe80::1", reasonLinkLocal}, {"fe80::1%eth0", reasonLinkLocal}, {"fc00::1", reasonPrivate},
		{"fd00:ec2::254", reasonMetadata}, {"fec0::1", reasonPrivate}, {"ff02::1", reasonMulticast}, {"100::1", reasonReserved}, {"2001::1", reasonReserved},
		{"::ffff:10.0.0.1", reasonPrivate}, {"::ffff:169.254.169.254", reasonMetadata}, {"::ffff:8.8.8.8", reasonIPv6}, {"::10.0.0.1", reasonPrivate},
		{"64:ff9b::10.0.0.1", reasonPrivate}, {"64:ff9b::8.8.8.8", reasonIPv6}, {"64:ff9b:1::192.168.0.1", reasonPrivate}, {"2002:a9fe:a9fe::1", reasonMetadata},
		{"2001:4860:4860::8888", reasonIPv6},
	} {
		if got := Refusal(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.addr, got, tt.want)
		}
	}
	if Refusal(netip.Addr{}) == "" {
		t.Error("no address at all is let through")
	}
}

// The kernel's set and Refusal are the same for every IPv4 address.
func TestSpans(t *testing.T) {
	host := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("11.0.0.0"), netip.MustParseAddr("10.1.2.3")}
	spans := spans4(host)
	for i := 1; i < len(spans); i++ {
		if spans[i-1].last.Next().Compare(spans[i].first) >= 0 {
			t.Errorf("%v and %v overlap, or touch", spans[i-1], spans[i])
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
		in := slices.ContainsFunc(spans, func(s span) bool { return s.first.Compare(a) <= 0 && a.Compare(s.last) <= 0 })
		if want := Refusal(a) != "" || slices.Contains(host, a); in != want {
			t.Fatalf("%s is in the set: %v, want %v", a, in, want)
		}
	})
}

func TestPolicy(t *testing.T) {
	p, err := newPolicy(vm.Egress{Mode: vm.EgressAllow, Allow: []string{"Example.COM.", "*.example.org", "git.example.net:22", "example.com:8443"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		port uint16
		want bool
	}{
		{"example.com", 443, true}, {"example.com", 80, true}, {"example.com", 8443, true}, {"example.com", 22, false}, {"example.com", 0, true},
		{"www.example.com", 443, false}, {"notexample.com", 443, false}, {"com", 443, false},
		{"a.example.org", 443, true}, {"a.b.example.org", 80, true}, {"example.org", 443, false}, {"aexample.org", 443, false}, {"a.example.org", 22, false},
		{"git.example.net", 22, true}, {"git.example.net", 443, false}, {"git.example.net", 0, true}, {"example.net", 0, false},
	} {
		if got := p.allows(tt.name, tt.port); got != tt.want {
			t.Errorf("%s:%d: %v, want %v", tt.name, tt.port, got, tt.want)
		}
	}
	if diff := cmp.Diff([]uint16{22, 8443}, p.extra); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "*", "*.com", "a..b", "10.0.0.1", "[::1]:80", "https://a.example", "a.example:0", "a.example:65536", "a.example:x",
		"a.*.example", "**.example.com", "a_b c.example", strings.Repeat("a.", 127) + "example", strings.Repeat("a", 64) + ".example", "é.example"} {
		if err := CheckEgress(vm.Egress{Mode: vm.EgressAllow, Allow: []string{bad}}); err == nil {
			t.Errorf("%q is taken for a host", bad)
		}
	}
	if err := CheckEgress(vm.Egress{Mode: vm.EgressAllow, Allow: make([]string, maxAllow+1)}); err == nil {
		t.Error("a list without an end")
	}
}

func TestParseResolvConf(t *testing.T) {
	got := parseResolvConf("# a comment\nnameserver 10.0.0.2\nsearch example.com\nnameserver\tfe80::1%eth0\nnameserver nonsense\nnameserver\n")
	want := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:53"), netip.MustParseAddrPort("[fe80::1%eth0]:53")}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// clientHello is what a real client says first.
func clientHello(t testing.TB, name string) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		defer client.Close()
		tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	}()
	buf := make([]byte, 16<<10)
	n, err := server.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// stream is a connection that says something, in pieces, and then nothing more.
type stream struct {
	net.Conn
	data  []byte
	piece int
}

func (s *stream) Read(b []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, net.ErrClosed
	}
	n := copy(b[:min(len(b), max(1, s.piece))], s.data)
	s.data = s.data[n:]
	return n, nil
}

func (s *stream) SetReadDeadline(time.Time) error { return nil }

func TestReadHello(t *testing.T) {
	for _, name := range []string{"example.com", "", "a.very.long.name.example.com"} {
		hello := clientHello(t, name)
		for _, piece := range []int{1, 5, 100, 1 << 20} {
			rest := append(slices.Clone(hello), "and more"...)
			got, read, err := readHello(context.Background(), &stream{data: rest, piece: piece})
			if err != nil || got != name || !bytes.HasPrefix(rest, read) || len(read) < len(hello) {
				t.Errorf("%q in pieces of %d: %q, %d of %d bytes, %v", name, piece, got, len(read), len(hello), err)
			}
		}
	}
	endless := bytes.Repeat([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}, 20000)
	if _, _, err := readHello(context.Background(), &stream{data: endless, piece: 4096}); err == nil {
		t.Error("a hello without an end")
	}
}

func FuzzHello(f *testing.F) {
	f.Add(clientHello(f, "example.com"), 100)
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 1)
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		name, read, err := readHello(context.Background(), &stream{data: data, piece: piece})
		if err == nil && (!bytes.HasPrefix(data, read) || len(read) > maxHello || len(name) > len(data)) {
			t.Errorf("%q, %d bytes", name, len(read))
		}
	})
}

func FuzzPacket(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 2, 10, 0, 0, 5, 0, 1, 0, 53, 0, 8, 0, 0})
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 0, 6, 64}, make([]byte, 40)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, from, err := parsePacket(data)
		if err == nil && (!d.Addr.IsValid() || !from.IsValid() || d.Proto == "" || d.String() == "") {
			t.Errorf("%+v from %v", d, from)
		}
	})
}

func query(t testing.TB, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnswers(t *testing.T) {
	q := query(t, "Example.com.", dnsmessage.TypeA)
	answer := func(change func(*dnsmessage.Message)) []byte {
		var m dnsmessage.Message
		if err := m.Unpack(query(t, "example.COM.", dnsmessage.TypeA)); err != nil {
			t.Fatal(err)
		}
		m.Response = true
		change(&m)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, tt := range map[string]struct {
		answer []byte
		want   bool
	}{
		"the answer":       {answer(func(*dnsmessage.Message) {}), true},
		"another id":       {answer(func(m *dnsmessage.Message) { m.ID = 8 }), false},
		"a query":          {answer(func(m *dnsmessage.Message) { m.Response = false }), false},
		"another question": {answer(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("evil.com.") }), false},
		"another type":     {answer(func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeTXT }), false},
		"no question":      {answer(func(m *dnsmessage.Message) { m.Questions = nil }), false},
		"nothing":          {nil, false},
	} {
		if got := answers(tt.answer, q); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzDNS has a machine ask anything, with a policy that lets no name through: nothing is asked of anybody.
func FuzzDNS(f *testing.F) {
	f.Add(query(f, "example.com.", dnsmessage.TypeA))
	f.Add(query(f, ".", dnsmessage.TypeALL))
	f.Add([]byte{0, 1, 0x80})
	guard := newGuard(nil, 0, nil)
	guard.set(&policy{mode: vm.EgressNone}, "m", func(d vm.Denial) {
		if strings.ContainsAny(d.String(), "\r\n\x1b") {
			panic(d.String())
		}
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		fw := newForwarder(guard, nil) // without resolvers: it must not come to that
		if a := fw.answer(context.Background(), "udp", data); a != nil && (len(a) < 12 || a[0] != data[0] || a[1] != data[1] || a[3]&15 != byte(dnsmessage.RCodeRefused)) {
			t.Errorf("answer %x", a)
		}
		addressesOf(data)
		answers(data, data)
	})
}

func FuzzEntry(f *testing.F) {
	f.Add("*.example.com:8443")
	f.Add("10.0.0.1")
	f.Fuzz(func(t *testing.T, entry string) {
		host, _, err := parseEntry(entry)
		if err != nil {
			return
		}
		name := strings.TrimPrefix(host, "*.")
		if again, ok := canonical(name); !ok || again != name {
			t.Errorf("%q: %q is not canonical", entry, name)
		}
		if _, err := netip.ParseAddr(name); err == nil {
			t.Errorf("%q is an address", entry)
		}
	})
}

// TestDenials tells of the same thing once, and not without an end.
func TestDenials(t *testing.T) {
	var told []vm.Denial
	g := newGuard(nil, 0, nil)
	g.set(&policy{}, "m1", func(d vm.Denial) { told = append(told, d) })
	for range 2 {
		for i := range 3 * maxDenials {
			g.deny(vm.Denial{Proto: "tcp", Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(i+1)), Reason: reasonPrivate})
		}
	}
	if len(told) != maxDenials+1 || told[0].Machine != "m1" || told[maxDenials].Name != "more" {
		t.Errorf("%d denials were told, the last is %v", len(told), told[len(told)-1])
	}
}
