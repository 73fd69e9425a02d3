// Package networktest is a world of network namespaces to test machines' networks in: a host, and everything that the
// host reaches, which answers at public, private and metadata addresses alike. Nothing of it leaves this machine.
package networktest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

// World is the namespaces and the servers in them.
type World struct {
	Host    string        // path of the namespace that plays the host
	Pool    *network.Pool // whose slots are connected to Host
	Journal vm.Journal    // of Pool
	TLS     *tls.Config   // for a client of the TLS servers

	t             testing.TB
	hostNS, netNS netns.NsHandle
	mu            sync.Mutex
	seen          []string // connections and datagrams that arrived, "tcp 10.0.0.5:5432"
	names         map[string][]netip.Addr
}

// Addresses of the world.
const (
	Resolver = "10.53.0.53"   // the host's resolver, on a private network
	HostIP   = "203.0.113.1"  // of the host, towards the internet
	HostLAN  = "192.168.77.1" // of the host, on its own network
	Web      = "203.0.113.80" // public
	Other    = "203.0.113.81" // public
)

// Large is how many bytes the web servers serve at /large.
const Large = 64 << 20

// WorldAddrs are the addresses that the world answers at.
func WorldAddrs() []string {
	return []string{Resolver, Web, Other, "203.0.113.5", "10.0.0.5", "172.16.3.4", "192.168.1.1", "169.254.169.254",
		"169.254.1.1", "100.64.0.9", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.7.7", "192.88.99.1"}
}

// NeedRoot skips a test where namespaces cannot be made.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: network namespaces need root")
	}
	if err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: network namespaces: %v", err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: %v", err)
	}
}

// New makes a world, whose pool has the given Config but for its Journal, Host and DNS. It ends with the test.
func New(t testing.TB, cfg network.Config) *World {
	t.Helper()
	NeedRoot(t)
	w := &World{Journal: vm.Journal{Dir: t.TempDir(), Volatile: true}, t: t, names: map[string][]netip.Addr{}}
	var host string
	host, w.hostNS = Namespace(t, "tgh")
	_, w.netNS = Namespace(t, "tgi")
	w.Host = vm.NamespacePath(host)
	w.wire()
	w.serve()
	cfg.Journal, cfg.Host = w.Journal, w.Host
	cfg.DNS = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(Resolver), 53)}
	pool, err := network.Open(cfg)
	must(t, err)
	w.Pool = pool
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Errorf("close the pool: %v", err)
		}
	})
	return w
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func (w *World) wire() {
	w.t.Helper()
	host, err1 := netlink.NewHandleAt(w.hostNS, unix.NETLINK_ROUTE)
	world, err2 := netlink.NewHandleAt(w.netNS, unix.NETLINK_ROUTE)
	must(w.t, err1, err2)
	w.t.Cleanup(func() { host.Close(); world.Close() })
	must(w.t, host.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "down0", PeerNamespace: netlink.NsFd(w.netNS)}))
	must(w.t, raise(host, "lo", HostLAN+"/32"), // a second address of the host, on its LAN
		raise(host, "up0", HostIP+"/24"), route(host, "up0", "203.0.113.2"),
		raise(world, "down0", "203.0.113.2/24"))
	for _, a := range WorldAddrs() {
		must(w.t, raise(world, "lo", a+"/32"))
	}
	// What comes from the host may be for any address.
	must(w.t, Inside(w.netNS, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/down0/rp_filter", []byte("0"), 0) }))
}

// serve answers on every address: TCP echoes after a greeting, HTTP, TLS, UDP echoes, DNS.
func (w *World) serve() {
	w.t.Helper()
	for _, port := range []int{22, 5432, 8443} {
		w.listen(w.netNS, port, func(c net.Conn) { fmt.Fprintf(c, "hello from %s\n", c.LocalAddr()) })
	}
	for _, port := range []int{22, 80, 3000} {
		w.listen(w.hostNS, port, func(c net.Conn) { fmt.Fprint(c, "the host\n") })
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		w.saw("http", r.Host)
		fmt.Fprintf(rw, "web %s", r.Host)
	})
	large := make([]byte, Large)
	mux.HandleFunc("/large", func(rw http.ResponseWriter, _ *http.Request) { rw.Write(large) })
	plain := httptest.NewUnstartedServer(mux)
	secure := httptest.NewUnstartedServer(mux)
	must(w.t, plain.Listener.Close(), secure.Listener.Close())
	must(w.t, Inside(w.netNS, func() (err error) {
		if plain.Listener, err = net.Listen("tcp4", ":80"); err != nil {
			return err
		}
		secure.Listener, err = net.Listen("tcp4", ":443")
		return err
	}))
	plain.Listener, secure.Listener = &seenListener{plain.Listener, w}, &seenListener{secure.Listener, w}
	plain.Start()
	secure.StartTLS()
	w.TLS = secure.Client().Transport.(*http.Transport).TLSClientConfig
	w.t.Cleanup(func() { plain.Close(); secure.Close() })
	w.packets(w.netNS, Resolver+":53", w.resolve)
	echo := func(b []byte) []byte { return b }
	for _, a := range WorldAddrs() { // each by itself: a wildcard's answers would come from another address
		w.packets(w.netNS, a+":9999", echo)
		w.packets(w.netNS, a+":443", echo)
		if a != Resolver {
			w.packets(w.netNS, a+":53", echo)
		}
	}
	w.packets(w.hostNS, ":9999", echo)
	w.packets(w.hostNS, ":53", echo)
}

// seenListener notes the connections that arrive.
type seenListener struct {
	net.Listener
	w *World
}

func (l *seenListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.w.saw("tcp", c.LocalAddr().String())
	}
	return c, err
}

func (w *World) listen(ns netns.NsHandle, port int, serve func(net.Conn)) {
	w.t.Helper()
	var l net.Listener
	must(w.t, Inside(ns, func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	}))
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.saw("tcp", c.LocalAddr().String())
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
}

// Listen listens in the world outside, at a port of all its public and private addresses. It ends with the test.
func (w *World) Listen(port int) net.Listener {
	w.t.Helper()
	var l net.Listener
	must(w.t, Inside(w.netNS, func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	}))
	w.t.Cleanup(func() { l.Close() })
	return &seenListener{l, w}
}

func (w *World) packets(ns netns.NsHandle, addr string, answer func([]byte) []byte) {
	w.t.Helper()
	var c net.PacketConn
	must(w.t, Inside(ns, func() (err error) {
		c, err = net.ListenPacket("udp4", addr)
		return err
	}))
	w.t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			w.saw("udp", addr)
			c.WriteTo(answer(buf[:n]), from)
		}
	}()
}

func (w *World) saw(proto, at string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, proto+" "+at)
}

// Arrived is what has arrived since the last call, but for the host's own questions to its Resolver.
func (w *World) Arrived() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, s := range w.seen {
		if s != "udp "+Resolver+":53" {
			out = append(out, s)
		}
	}
	w.seen = nil
	return out
}

// Name gives a name addresses from now on.
func (w *World) Name(name string, addrs ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[name] = nil
	for _, a := range addrs {
		w.names[name] = append(w.names[name], netip.MustParseAddr(a))
	}
}

// resolve is the host's Resolver.
func (w *World) resolve(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response, m.RecursionAvailable = true, true
	q := m.Questions[0]
	w.mu.Lock()
	addrs, ok := w.names[strings.TrimSuffix(q.Name.String(), ".")]
	w.mu.Unlock()
	if !ok {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addrs {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: a.As4()}})
		}
	}
	b, _ := m.Pack()
	return b
}

// Machine is somebody in a slot.
type Machine struct {
	*network.Slot
	t  testing.TB
	mu sync.Mutex
	d  []vm.Denial
}

func (w *World) Machine(e vm.Egress) *Machine {
	w.t.Helper()
	m := &Machine{t: w.t}
	e.Denied = m.Note
	s, err := w.Pool.Acquire(context.Background(), "m1", e)
	if err != nil {
		w.t.Fatal(err)
	}
	m.Slot = s
	w.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return m
}

// Note is the Denied of the machine's policy.
func (m *Machine) Note(d vm.Denial) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.d = append(m.d, d)
}

// Forget forgets the denials so far.
func (m *Machine) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.d = nil
}

// Denials are the lines that were told, after waiting for at least so many.
func (m *Machine) Denials(least int) []string {
	m.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		var lines []string
		for _, d := range m.d {
			lines = append(lines, d.String())
		}
		m.mu.Unlock()
		if len(lines) >= least {
			return lines
		}
		if time.Now().After(end) {
			m.t.Fatalf("%d denials were told, want %d: %q", len(lines), least, lines)
		}
	}
}

// Dial connects from inside the machine.
func (m *Machine) Dial(network, addr string, timeout time.Duration) (conn net.Conn, err error) {
	err = m.Inside(func() (err error) {
		d := net.Dialer{Timeout: timeout}
		conn, err = d.Dial(network, addr)
		return err
	})
	return conn, err
}

// Ask sends a DNS query from inside the machine and returns the code and the addresses.
func (m *Machine) Ask(name string, kind dnsmessage.Type) (dnsmessage.RCode, []string) {
	m.t.Helper()
	conn, err := m.Dial("udp", network.Gateway().String()+":53", time.Second)
	must(m.t, err)
	defer conn.Close()
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	b, err := q.Pack()
	must(m.t, err)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 1500)
	_, err = conn.Write(b)
	must(m.t, err)
	n, err := conn.Read(buf)
	must(m.t, err)
	var a dnsmessage.Message
	must(m.t, a.Unpack(buf[:n]))
	if a.ID != 7 {
		m.t.Fatalf("answer has id %d", a.ID)
	}
	var addrs []string
	for _, r := range a.Answers {
		if body, ok := r.Body.(*dnsmessage.AResource); ok {
			addrs = append(addrs, netip.AddrFrom4(body.A).String())
		}
	}
	return a.RCode, addrs
}

// Client is an HTTP client inside the machine, which asks its own DNS.
func (m *Machine) Client(tc *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: tc, DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		if _, err := netip.ParseAddr(host); err != nil {
			code, addrs := m.Ask(host+".", dnsmessage.TypeA)
			if len(addrs) == 0 {
				return nil, fmt.Errorf("resolve %s: %v", host, code)
			}
			host = addrs[0]
		}
		return m.Dial("tcp4", net.JoinHostPort(host, port), 3*time.Second)
	}}
	m.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// FromHost tries to connect from the host.
func (w *World) FromHost(addr string) error {
	return Inside(w.hostNS, func() error {
		conn, err := net.DialTimeout("tcp4", addr, 300*time.Millisecond)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// Links are the names of the host's interfaces.
func (w *World) Links() []string {
	w.t.Helper()
	h, err := netlink.NewHandleAt(w.hostNS, unix.NETLINK_ROUTE)
	must(w.t, err)
	defer h.Close()
	links, err := h.LinkList()
	must(w.t, err)
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}

// Neighbours are who is known at which address, in the namespace of that name, or, with "", of the host.
func (w *World) Neighbours(namespace string) []string {
	w.t.Helper()
	ns := w.hostNS
	if namespace != "" {
		var err error
		ns, err = netns.GetFromPath(vm.NamespacePath(namespace))
		must(w.t, err)
		defer ns.Close()
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(w.t, err)
	defer h.Close()
	list, err := h.NeighList(0, unix.AF_INET)
	must(w.t, err)
	var out []string
	for _, n := range list {
		if n.State&unix.NUD_NOARP == 0 { // which is not kept by address
			out = append(out, fmt.Sprintf("%s is at %s", n.IP, n.HardwareAddr))
		}
	}
	slices.Sort(out)
	return out
}

// Tables are the names of the host's nftables tables.
func (w *World) Tables() []string {
	w.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(w.hostNS)))
	must(w.t, err)
	tables, err := c.ListTables()
	must(w.t, err)
	var names []string
	for _, t := range tables {
		names = append(names, t.Name)
	}
	return names
}

// Frame sends frames from the machine's interface, whatever they say.
func (m *Machine) Frame(frames ...[]byte) {
	m.t.Helper()
	must(m.t, m.Inside(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		for _, b := range frames {
			if err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// Sniff returns a function that returns the frames of IP that came out of the slot since.
func (w *World) Sniff(m *Machine) func() []string {
	w.t.Helper()
	var fd int
	must(w.t, Inside(w.hostNS, func() (err error) {
		i, err := net.InterfaceByName(m.Name())
		if err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		const all = 0x0300 // ETH_P_ALL, in network order
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	}))
	w.t.Cleanup(func() { unix.Close(fd) })
	return func() []string {
		var frames []string
		buf := make([]byte, 2048)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return frames
			}
			ll, ok := from.(*unix.SockaddrLinklayer)
			isARP := n > 14 && bytes.Equal(buf[12:14], []byte{8, 6})
			if ok && ll.Pkttype != unix.PACKET_OUTGOING && !isARP && n > 14 {
				frames = append(frames, hex.EncodeToString(buf[:min(n, 60)]))
			}
		}
	}
}
