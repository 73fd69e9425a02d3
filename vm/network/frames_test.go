package network_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
)

// packet is a frame, of which the zero value of a field is what is usual.
type packet struct {
	mac      string // source
	from, to string
	proto    byte // 0: UDP
	payload  []byte
	fragment uint16 // of the header's field
	vlan     bool
}

func (p packet) bytes() []byte {
	mac, _ := net.ParseMAC(p.mac)
	if p.mac == "" {
		mac, _ = net.ParseMAC(network.GuestMAC)
	}
	gateway := []byte{2, 0x54, 0x47, 0x52, 0, 1}
	b := append(append([]byte{}, gateway...), mac...)
	if p.vlan {
		b = append(b, 0x81, 0, 0, 5)
	}
	if p.from == "" {
		p.from = network.Guest().String()
	}
	from, to := netip.MustParseAddr(p.from), netip.MustParseAddr(p.to)
	if p.proto == 0 {
		p.proto = 17
	}
	if p.payload == nil {
		p.payload = udp(9999)
	}
	if to.Is6() {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.payload)))
		b = append(b, p.proto, 64)
		f := netip.MustParseAddr("fe80::54:47ff:fe52:2").As16()
		t := to.As16()
		return append(append(append(b, f[:]...), t[:]...), p.payload...)
	}
	h := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(p.payload)))
	h = append(h, 0, 7)
	h = binary.BigEndian.AppendUint16(h, p.fragment)
	h = append(h, 64, p.proto, 0, 0)
	h = append(append(h, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(append(append(b, 8, 0), h...), p.payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// udp is a datagram of one byte without a checksum, to a port.
func udp(port uint16) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x10, 0}, port)
	return append(b, 0, 9, 0, 0, 'x', 0)[:9]
}

func icmp(kind byte) []byte {
	b := []byte{kind, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// TestFrames writes to the wire what no honest machine would, with the most open policy.
func TestFrames(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	m := w.Machine(open())
	const own = "not the machine's own address"
	to := networktest.Web
	for _, tt := range []struct {
		name   string
		packet packet
		denied string // "": dropped without a word
	}{
		{"another MAC", packet{mac: "02:00:00:00:00:99", to: to}, "denied udp to 203.0.113.80:9999 (" + own + ")"},
		{"the gateway's MAC", packet{mac: "02:54:47:52:00:01", to: to, payload: udp(1)}, "denied udp to 203.0.113.80:1 (" + own + ")"},
		{"the host's address", packet{from: networktest.HostIP, to: to}, "denied udp to 203.0.113.80:9999 (" + own + ": 203.0.113.1)"},
		{"a neighbour of the slot", packet{from: "198.18.0.3", to: to}, "denied udp to 203.0.113.80:9999 (" + own + ": 198.18.0.3)"},
		{"the slot's outer address", packet{from: "198.19.0.1", to: to}, "denied udp to 203.0.113.80:9999 (" + own + ": 198.19.0.1)"},
		{"loopback", packet{from: "127.0.0.1", to: to}, "denied udp to 203.0.113.80:9999 (" + own + ": 127.0.0.1)"},
		{"DHCP", packet{from: "0.0.0.0", to: "255.255.255.255", payload: udp(67)}, "denied udp to 255.255.255.255:67 (" + own + ": 0.0.0.0)"},
		{"broadcast", packet{to: "255.255.255.255"}, "denied udp to 255.255.255.255:9999 (reserved range)"},
		{"reserved", packet{to: "240.1.2.3"}, "denied udp to 240.1.2.3:9999 (reserved range)"},
		{"to itself", packet{to: "198.18.0.2"}, "denied udp to 198.18.0.2:9999 (other machines)"},
		{"another slot", packet{to: "198.19.0.3"}, "denied udp to 198.19.0.3:9999 (other machines)"},
		{"to loopback", packet{to: "127.0.0.1"}, "denied udp to 127.0.0.1:9999 (loopback)"},
		{"this network", packet{to: "0.0.0.0"}, "denied udp to 0.0.0.0:9999 (reserved range)"},
		{"GRE", packet{to: to, proto: 47}, "denied ip protocol 47 to 203.0.113.80 (protocol not supported)"},
		{"IPv6 in IPv4", packet{to: to, proto: 41}, "denied ip protocol 41 to 203.0.113.80 (protocol not supported)"},
		{"SCTP", packet{to: to, proto: 132, payload: udp(9)}, "denied sctp to 203.0.113.80:9 (protocol not supported)"},
		{"a timestamp by ICMP", packet{to: to, proto: 1, payload: icmp(13)}, "denied icmp to 203.0.113.80 (protocol not supported)"},
		{"a redirect by ICMP", packet{to: to, proto: 1, payload: icmp(5)}, ""},
		{"ping of a private address", packet{to: "10.0.0.5", proto: 1, payload: icmp(8)}, "denied icmp to 10.0.0.5 (private range)"},
		{"a late fragment", packet{to: "10.0.0.5", fragment: 100}, ""},
		{"a VLAN", packet{to: "10.0.0.5", vlan: true}, ""},
		{"IPv6", packet{to: "2001:4860::8888"}, ""},
		{"IPv6 loopback", packet{to: "::1"}, ""},
		{"IPv6 link-local", packet{to: "fe80::1"}, ""},
		{"IPv6 private", packet{to: "fd00:ec2::254"}, ""},
		{"IPv6 multicast", packet{to: "ff02::1"}, ""},
		{"IPv6 router solicitation", packet{to: "ff02::2", proto: 58, payload: icmp(133)}, ""},
		{"IPv6 with IPv4 inside", packet{to: "::ffff:10.0.0.5"}, ""},
		{"NAT64", packet{to: "64:ff9b::a00:5"}, ""},
		{"6to4", packet{to: "2002:a00:5::1"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			must(t, m.SetEgress("m1", vm.Egress{Mode: vm.EgressOpen, Denied: m.Note})) // nothing was told yet
			m.Forget()
			out := w.Sniff(m)
			m.Frame(tt.packet.bytes())
			// What comes after it has arrived: so would it have.
			if err := try(m, "udp", to+":443"); err != nil {
				t.Fatal(err)
			}
			for _, f := range frames(out()) {
				if f != "17 203.0.113.80:443" {
					t.Errorf("came out: %s", f)
				}
			}
			want := []string{tt.denied}
			if tt.denied == "" {
				want = nil
			}
			got := m.Denials(len(want))
			if tt.name == "a redirect by ICMP" { // told or not: it does not come out
				got = nil
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("denials (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("ping", func(t *testing.T) {
		out := w.Sniff(m)
		m.Frame(packet{to: to, proto: 1, payload: icmp(8)}.bytes())
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			if got := frames(out()); len(got) > 0 {
				if !strings.HasPrefix(got[0], "1 203.0.113.80") {
					t.Errorf("came out: %q", got)
				}
				return
			}
			if time.Now().After(end) {
				t.Fatal("a ping of a public address did not come out")
			}
		}
	})
}

// arp is a frame of ARP: who is at an address, or that somebody is.
func arp(answer bool, mac string, from, to netip.Addr) []byte {
	source, _ := net.ParseMAC(mac)
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, source...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	if answer {
		b[len(b)-1] = 2
	}
	b = append(append(b, source...), from.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), to.AsSlice()...)
}

// TestARPFlood has a machine claim thousands of addresses. The kernel has one table of neighbours, with room for a thousand,
// for all namespaces: what one machine fills it with, the host and all others lack. That packets are refused whose sender
// is not behind the interface (rp_filter) holds for questions by ARP, too.
func TestARPFlood(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	m := w.Machine(open())
	arrives := func() { // what is sent now, and so what was sent before
		t.Helper()
		for end := time.Now().Add(30 * time.Second); try(m, "udp", networktest.Web+":443") != nil; {
			if time.Now().After(end) {
				t.Fatal("nothing arrives")
			}
		}
	}
	arrives()
	before := w.Neighbours(m.Name())
	guest := network.Guest().String() + " is at " + network.GuestMAC
	if !slices.Contains(before, guest) {
		t.Fatalf("the machine's namespace knows %q, want %q", before, guest)
	}
	gateway := network.Gateway()
	var flood [][]byte
	for i := range 1000 {
		mac := fmt.Sprintf("02:00:00:01:%02x:%02x", i>>8, i&0xff)
		last := byte(i)
		for _, from := range []netip.Addr{
			netip.AddrFrom4([4]byte{198, 18, 0, last % 4}), netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), last}), // its own network, and beside it
			netip.AddrFrom4([4]byte{203, 0, 113, last}), netip.AddrFrom4([4]byte{198, 19, 0, last}), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), last}),
		} {
			flood = append(flood, arp(false, mac, from, gateway), // a question, by which who is asked learns of who asks
				arp(true, mac, from, gateway), arp(i%2 == 0, mac, from, from)) // an answer, and what nobody has asked for
		}
		flood = append(flood, arp(true, mac, network.Guest(), gateway)) // another machine at its own address
	}
	m.Frame(flood...)
	arrives()
	for _, namespace := range []string{m.Name(), ""} {
		for _, n := range w.Neighbours(namespace) {
			at, _, _ := strings.Cut(n, " ")
			// Of the four addresses that it shares with its gateway it may claim the one that nobody has.
			own := namespace != "" && network.GuestPrefix().Contains(netip.MustParseAddr(at))
			if strings.Contains(n, "02:00:00:01:") && !own {
				t.Errorf("the namespace %q has learnt, among %d: %s", namespace, len(w.Neighbours(namespace)), n)
			}
		}
	}
	if after := w.Neighbours(m.Name()); len(after) > len(before)+1 || !slices.Contains(after, guest) {
		t.Errorf("neighbours in the machine's namespace: %q, before %q", after, before)
	}
}

// frames says of frames, as networktest has them, what they are: protocol and destination.
func frames(list []string) []string {
	var out []string
	for _, f := range list {
		b, err := hex.DecodeString(f)
		if err != nil || len(b) < 38 || b[12] != 8 || b[13] != 0 {
			out = append(out, f)
			continue
		}
		out = append(out, fmt.Sprintf("%d %s:%d", b[23], netip.AddrFrom4([4]byte(b[30:34])), binary.BigEndian.Uint16(b[36:38])))
	}
	return out
}

// TestInbound has nobody reach a machine, or what serves it, from outside.
func TestInbound(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	m := w.Machine(open())
	must(t, m.Inside(func() error {
		l, err := net.Listen("tcp4", ":4000")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}))
	for _, to := range []string{"198.19.0.1:4000", "198.19.0.1:53", "198.19.0.1:3129", "198.18.0.1:53", "198.18.0.2:4000"} {
		if err := w.FromHost(to); err == nil {
			t.Errorf("the host reached %s", to)
		}
	}
}

// limited is an open policy with limits of its own.
func limited(l vm.NetLimits) vm.Egress { return vm.Egress{Mode: vm.EgressOpen, Limits: l} }

// TestConnectionLimit has machines keep more connections than they may: by what their pool says, and by their policy.
func TestConnectionLimit(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1, Limits: vm.NetLimits{Connections: 5}})
	for _, tt := range []struct {
		egress vm.Egress
		most   int
	}{{open(), 5}, {limited(vm.NetLimits{Connections: 2}), 2}} {
		m, made := w.Machine(tt.egress), 0
		for range tt.most + 1 {
			if conn, err := m.Dial("tcp4", networktest.Web+":8443", 2*time.Second); err == nil {
				defer conn.Close() // those that are open count
				made++
			}
		}
		if made != tt.most {
			t.Errorf("%d connections were made, want %d", made, tt.most)
		}
		if got, want := m.Denials(1), "denied tcp to 203.0.113.80:8443 (too many connections)"; got[0] != want {
			t.Errorf("denials %q, want %q", got, want)
		}
	}
}

// TestNewConnectionLimit has a machine make connections faster than it may.
func TestNewConnectionLimit(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	m := w.Machine(limited(vm.NetLimits{NewPerSecond: 3}))
	const tries = 40
	begin := time.Now()
	var tried []net.Conn
	for range tries { // without waiting for an answer: the first packet of each is what counts
		conn, err := m.Dial("udp4", networktest.Web+":9999", time.Second)
		must(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte("x"))
		must(t, err)
		tried = append(tried, conn)
	}
	most := 3 + 3*int(time.Since(begin).Seconds()+1) // the bucket, and what has come into it
	m.Denials(1)
	made := 0
	for i, conn := range tried {
		within := 50 * time.Millisecond
		if i == 0 { // which the bucket has room for: its answer comes, and on a busy host it takes its time
			within = 30 * time.Second
		}
		conn.SetReadDeadline(time.Now().Add(within))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			made++
		}
	}
	if made == 0 || made > most {
		t.Errorf("%d of %d got through, want 1 to %d", made, tries, most)
	}
}

// TestBandwidth measures how fast a machine gets what it fetches, and changes what it may.
func TestBandwidth(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1, Limits: vm.NetLimits{Bandwidth: 64 << 20}})
	m := w.Machine(limited(vm.NetLimits{Bandwidth: 1 << 20}))
	slow := rate(t, m, 2<<20)
	must(t, m.SetEgress("m1", limited(vm.NetLimits{Bandwidth: 4 << 20})))
	faster := rate(t, m, 4<<20)
	must(t, m.SetEgress("m1", open())) // the pool's
	fast := rate(t, m, 32<<20)
	t.Logf("measured: %.2f MiB/s of 1, %.2f of 4, %.1f of 64", slow/(1<<20), faster/(1<<20), fast/(1<<20))
	if slow > 1.25*(1<<20) || faster > 1.25*(4<<20) || fast > 1.25*(64<<20) {
		t.Error("it is faster than it may be")
	}
	if faster < 1.2*slow || fast < 1.2*faster {
		t.Error("it does not become faster when it may")
	}
}

func TestLimitsRefused(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	m := w.Machine(open())
	if err := m.SetEgress("m1", limited(vm.NetLimits{Connections: -1})); err == nil {
		t.Error("fewer connections than none")
	}
	if err := try(m, "tcp", networktest.Web+":22"); err != nil {
		t.Errorf("after a policy that was refused the one before is not in force: %v", err)
	}
	if _, err := network.Open(network.Config{Journal: w.Journal, Limits: vm.NetLimits{Bandwidth: -1}}); err == nil {
		t.Error("a pool that is slower than nothing")
	}
}

// rate fetches size bytes, and returns how many came a second. What the bucket holds at first is not counted.
func rate(t *testing.T, m *networktest.Machine, size int64) float64 {
	t.Helper()
	c := m.Client(nil)
	defer c.CloseIdleConnections()
	resp, err := c.Get("http://" + networktest.Web + "/large")
	must(t, err)
	defer resp.Body.Close()
	_, err = io.CopyN(io.Discard, resp.Body, 512<<10)
	must(t, err)
	began := time.Now()
	_, err = io.CopyN(io.Discard, resp.Body, size)
	must(t, err)
	return float64(size) / time.Since(began).Seconds()
}
