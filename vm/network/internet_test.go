package network

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// internet is a world of namespaces: a host, to which slots are connected, and everything that the host reaches, which
// answers at public, private and metadata addresses alike. Nothing of it ever leaves this machine.
type internet struct {
	t    testing.TB
	host string // path of the namespace of the host
	pool *Pool
	dir  string // of the journal

	hostNS, netNS netns.NsHandle
	roots         *tls.Config // that trusts the TLS server
	mu            sync.Mutex
	seen          []string // connections and datagrams that arrived, "tcp 10.0.0.5:5432"
	names         map[string][]netip.Addr
}

const (
	resolver = "10.53.0.53"  // of the host, on a private network of its own
	hostIP   = "203.0.113.1" // of the host, towards the internet
	web      = "203.0.113.80"
	other    = "203.0.113.81"
)

// worldAddrs are the addresses that the world answers at.
func worldAddrs() []string {
	return []string{resolver, web, other, "203.0.113.5", "10.0.0.5", "172.16.3.4", "192.168.1.1", "169.254.169.254",
		"169.254.1.1", "100.64.0.9", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.7.7", "192.88.99.1"}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: network namespaces need root")
	}
	if err := mayMakeNamespaces(); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: %v", err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: %v", err)
	}
}

// newInternet makes the world. The zero Config is completed.
func newInternet(t testing.TB, cfg Config) *internet {
	t.Helper()
	needRoot(t)
	w := &internet{t: t, dir: t.TempDir(), names: map[string][]netip.Addr{}}
	var hostName, netName string
	hostName, w.hostNS = testNamespace(t, "tgh")
	netName, w.netNS = testNamespace(t, "tgi")
	_ = netName
	w.host = vm.NamespacePath(hostName)
	w.wire()
	w.serve()
	cfg.Journal, cfg.Host = vm.Journal{Dir: w.dir, Volatile: true}, w.host
	cfg.DNS = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(resolver), 53)}
	pool, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.pool = pool
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Errorf("close the pool: %v", err)
		}
	})
	return w
}

func testNamespace(t testing.TB, prefix string) (string, netns.NsHandle) {
	t.Helper()
	name := prefix + strings.ToLower(rand.Text()[:8])
	ns, err := newNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := (vm.NetItem{Kind: vm.NetNamespace, Name: name}).Remove(); err != nil {
			t.Error(err)
		}
	})
	return name, ns
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func (w *internet) wire() {
	w.t.Helper()
	host, err1 := netlink.NewHandleAt(w.hostNS, unix.NETLINK_ROUTE)
	world, err2 := netlink.NewHandleAt(w.netNS, unix.NETLINK_ROUTE)
	must(w.t, err1, err2)
	w.t.Cleanup(func() { host.Close(); world.Close() })
	must(w.t, host.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "down0", PeerNamespace: netlink.NsFd(w.netNS)}))
	must(w.t, raise(host, "lo", netip.MustParsePrefix("192.168.77.1/32")), // a second address of the host, on its LAN
		raise(host, "up0", netip.MustParsePrefix(hostIP+"/24")), route(host, "up0", netip.MustParseAddr("203.0.113.2")),
		raise(world, "down0", netip.MustParsePrefix("203.0.113.2/24")))
	for _, a := range worldAddrs() {
		must(w.t, raise(world, "lo", netip.PrefixFrom(netip.MustParseAddr(a), 32)))
	}
	// On its own network the world must find the addresses that are not at its interface.
	must(w.t, inside(w.netNS, func() error { return sysctl("ipv4/conf/down0/rp_filter", "0") }))
}

// serve answers on every address: TCP echoes after a greeting, HTTP, TLS, UDP echoes, DNS.
func (w *internet) serve() {
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
	plain := httptest.NewUnstartedServer(mux)
	secure := httptest.NewUnstartedServer(mux)
	must(w.t, plain.Listener.Close(), secure.Listener.Close())
	must(w.t, inside(w.netNS, func() (err error) {
		if plain.Listener, err = net.Listen("tcp4", ":80"); err != nil {
			return err
		}
		secure.Listener, err = net.Listen("tcp4", ":443")
		return err
	}))
	plain.Listener, secure.Listener = &seenListener{plain.Listener, w}, &seenListener{secure.Listener, w}
	plain.Start()
	secure.StartTLS()
	w.roots = secure.Client().Transport.(*http.Transport).TLSClientConfig
	w.t.Cleanup(func() { plain.Close(); secure.Close() })
	w.packets(w.netNS, resolver+":53", w.resolve)
	echo := func(b []byte) []byte { return b }
	for _, a := range worldAddrs() { // each by itself: a wildcard's answers would come from another address
		w.packets(w.netNS, a+":9999", echo)
		w.packets(w.netNS, a+":443", echo)
		if a != resolver {
			w.packets(w.netNS, a+":53", echo)
		}
	}
	w.packets(w.hostNS, ":9999", echo)
	w.packets(w.hostNS, ":53", echo)
}

// seenListener notes the connections that arrive.
type seenListener struct {
	net.Listener
	w *internet
}

func (l *seenListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.w.saw("tcp", c.LocalAddr().String())
	}
	return c, err
}

func (w *internet) listen(ns netns.NsHandle, port int, serve func(net.Conn)) {
	w.t.Helper()
	var l net.Listener
	must(w.t, inside(ns, func() (err error) {
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

func (w *internet) packets(ns netns.NsHandle, addr string, answer func([]byte) []byte) {
	w.t.Helper()
	var c net.PacketConn
	must(w.t, inside(ns, func() (err error) {
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

func (w *internet) saw(proto, at string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, proto+" "+at)
}

// arrived is what has arrived since the last call, but for the host's own questions to its resolver.
func (w *internet) arrived() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, s := range w.seen {
		if s != "udp "+resolver+":53" {
			out = append(out, s)
		}
	}
	w.seen = nil
	return out
}

// name gives a name addresses from now on.
func (w *internet) name(name string, addrs ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[name] = nil
	for _, a := range addrs {
		w.names[name] = append(w.names[name], netip.MustParseAddr(a))
	}
}

// resolve is the host's resolver.
func (w *internet) resolve(query []byte) []byte {
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

// machine is somebody in a slot.
type machine struct {
	*Slot
	t  testing.TB
	mu sync.Mutex
	d  []vm.Denial
}

func (w *internet) machine(e vm.Egress) *machine {
	w.t.Helper()
	m := &machine{t: w.t}
	e.Denied = func(d vm.Denial) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.d = append(m.d, d)
	}
	s, err := w.pool.Acquire(context.Background(), "m1", e)
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

// denials are the lines that were told, after waiting for at least so many.
func (m *machine) denials(least int) []string {
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

// dial connects from inside the machine.
func (m *machine) dial(network, addr string, timeout time.Duration) (conn net.Conn, err error) {
	err = m.Inside(func() (err error) {
		d := net.Dialer{Timeout: timeout}
		conn, err = d.Dial(network, addr)
		return err
	})
	return conn, err
}

// ask sends a DNS query from inside the machine and returns the code and the addresses.
func (m *machine) ask(name string, kind dnsmessage.Type) (dnsmessage.RCode, []string) {
	m.t.Helper()
	conn, err := m.dial("udp", Gateway().String()+":53", time.Second)
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

// client is an HTTP client inside the machine, which asks its own DNS.
func (m *machine) client(tc *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: tc, DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		if _, err := netip.ParseAddr(host); err != nil {
			code, addrs := m.ask(host+".", dnsmessage.TypeA)
			if len(addrs) == 0 {
				return nil, fmt.Errorf("resolve %s: %v", host, code)
			}
			host = addrs[0]
		}
		return m.dial("tcp4", net.JoinHostPort(host, port), 3*time.Second)
	}}
	m.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// frame sends a frame from the machine's interface, whatever it says.
func (m *machine) frame(b []byte) {
	m.t.Helper()
	must(m.t, m.Inside(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		i, err := net.InterfaceByName(guestName)
		if err != nil {
			return err
		}
		return unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6})
	}))
}

// sniff returns a function that returns the frames of IP that came out of the slot since.
func (w *internet) sniff(m *machine) func() []string {
	w.t.Helper()
	var fd int
	must(w.t, inside(w.hostNS, func() (err error) {
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
