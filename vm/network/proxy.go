package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

const (
	maxClients   = 512 // connections of one machine to the proxy
	helloTimeout = 10 * time.Second
)

// service is what listens in a slot, for its machine.
type service struct {
	guard *guard
	stop  context.CancelFunc
	work  sync.WaitGroup

	mu     sync.Mutex
	open   map[io.Closer]bool // sockets
	closed bool
}

// serve opens the slot's sockets and answers them.
func (g *guard) serve(up *upstream) (_ *service, err error) {
	var queries net.PacketConn
	var dns, proxy net.Listener
	err = inside(g.ns, func() error {
		var err1, err2, err3 error
		gateway := Gateway().String()
		queries, err1 = net.ListenPacket("udp4", fmt.Sprintf("%s:%d", gateway, dnsPort))
		dns, err2 = net.Listen("tcp4", fmt.Sprintf("%s:%d", gateway, dnsPort))
		proxy, err3 = net.Listen("tcp4", fmt.Sprintf("%s:%d", gateway, proxyPort))
		return errors.Join(err1, err2, err3)
	})
	ctx, stop := context.WithCancel(context.Background())
	s := &service{guard: g, stop: stop, open: map[io.Closer]bool{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for _, c := range []io.Closer{queries, dns, proxy} {
		if c != nil {
			s.add(c)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen in the slot: %w", err)
	}
	packets, err := openPacketLog(g.ns)
	if err != nil {
		return nil, err
	}
	s.add(packets)
	f := newForwarder(g, up)
	web := newWebProxy(s)
	s.work.Go(func() { f.serveUDP(ctx, queries, s) })
	s.work.Go(func() { s.accept(dns, 16, func(c net.Conn) { f.serveTCP(ctx, c) }) })
	s.work.Go(func() { s.accept(proxy, maxClients, func(c net.Conn) { s.proxy(ctx, c, web) }) })
	s.work.Go(func() { web.server.Serve(web) })
	s.add(web)
	s.add(web.server)
	s.work.Go(func() { packets.read(g.onPacket) })
	return s, nil
}

// add notes a socket that close is to close; it closes one that comes too late.
func (s *service) add(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return
	}
	s.open[c] = true
}

func (s *service) remove(c io.Closer) {
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
	c.Close()
}

// close closes all sockets, and returns when nothing is served any more.
func (s *service) close() {
	s.stop()
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	s.work.Wait()
	s.guard.set(&policy{mode: vm.EgressNone}, "", nil)
}

// accept serves clients, at most so many at once, until the socket is closed.
func (s *service) accept(l net.Listener, most int, serve func(net.Conn)) {
	room := make(chan struct{}, most)
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // no descriptors: they are given back
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		s.add(conn)
		s.work.Go(func() {
			defer func() { <-room }()
			defer s.remove(conn)
			serve(conn)
		})
	}
}

// proxy serves a connection that the machine believes to be to somebody else.
func (s *service) proxy(ctx context.Context, conn net.Conn, web *webProxy) {
	to, err := originalDestination(conn)
	if err != nil {
		return
	}
	switch to.Port() {
	case 80:
		web.serve(conn)
	case 443:
		s.proxyTLS(ctx, conn, to)
	default:
		s.proxyPinned(ctx, conn, to)
	}
}

// proxyTLS connects a TLS client to the host that it names. What it then says to it is between the two of them.
func (s *service) proxyTLS(ctx context.Context, conn net.Conn, to netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout+dialTimeout)
	defer cancel()
	conn.SetReadDeadline(time.Now().Add(helloTimeout))
	host, hello, err := readHello(ctx, conn)
	if err != nil {
		s.guard.deny(vm.Denial{Proto: "tcp", Addr: to, Reason: "not TLS"})
		return
	}
	if host == "" {
		s.guard.deny(vm.Denial{Proto: "tcp", Addr: to, Reason: reasonNoName})
		refuseTLS(conn)
		return
	}
	conn.SetReadDeadline(time.Time{})
	server, err := s.guard.dialName(ctx, host, to.Port())
	if err != nil {
		if _, ok := isDenied(err); ok {
			refuseTLS(conn)
		}
		return
	}
	s.add(server)
	defer s.remove(server)
	if _, err := server.Write(hello); err == nil {
		join(conn, server)
	}
}

// proxyPinned connects to where the client wants to, if the machine was told that the address is that of a host which
// the list allows at this port: not every protocol names its host, and in some the server speaks first.
func (s *service) proxyPinned(ctx context.Context, conn net.Conn, to netip.AddrPort) {
	name, ok := s.guard.pinned(to)
	if !ok {
		s.guard.deny(vm.Denial{Proto: "tcp", Addr: to, Reason: reasonName})
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	server, err := s.guard.dial(ctx, name, to)
	if err != nil {
		return
	}
	s.add(server)
	defer s.remove(server)
	join(conn, server)
}

// join passes bytes both ways until both sides have ended.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	pass := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if c, ok := to.(*net.TCPConn); ok && err == nil {
			c.CloseWrite()
			return
		}
		to.Close()
		from.Close()
	}
	wg.Go(func() { pass(a, b) })
	wg.Go(func() { pass(b, a) })
	wg.Wait()
}

// originalDestination is where a redirected connection was to go.
func originalDestination(conn net.Conn) (netip.AddrPort, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return netip.AddrPort{}, errors.New("not a TCP connection")
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var addr *unix.IPv6Mreq // of the same size as sockaddr_in and larger than its address
	var serr error
	const originalDst = 80 // SO_ORIGINAL_DST, linux/netfilter_ipv4.h
	if err := raw.Control(func(fd uintptr) { addr, serr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, originalDst) }); err != nil {
		return netip.AddrPort{}, err
	}
	if serr != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", serr)
	}
	b := addr.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
}

// webProxy is the proxy for HTTP without TLS. It reads every request, so that one connection cannot be used for several
// hosts. It is the listener of its own server, to which connections are handed.
type webProxy struct {
	server *http.Server
	conns  chan net.Conn
	done   chan struct{}
	once   sync.Once
}

func newWebProxy(s *service) *webProxy {
	g := s.guard
	w := &webProxy{conns: make(chan net.Conn), done: make(chan struct{})}
	out := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			conn, err := g.dialName(ctx, host, 80)
			if err != nil {
				return nil, err
			}
			s.add(conn)
			return &ownConn{conn, func() error { s.remove(conn); return nil }}, nil
		},
		DisableCompression: true, MaxIdleConnsPerHost: 8, MaxIdleConns: 32, IdleConnTimeout: 30 * time.Second,
		MaxResponseHeaderBytes: 1 << 20,
	}
	silent := log.New(io.Discard, "", 0)
	proxy := &httputil.ReverseProxy{
		Transport: out, FlushInterval: -1, ErrorLog: silent,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", hostOf(r.In.Host)
			r.Out.Host = r.In.Host
		},
		ErrorHandler: func(rw http.ResponseWriter, _ *http.Request, err error) {
			code := http.StatusBadGateway
			if _, ok := isDenied(err); ok {
				code = http.StatusForbidden
			}
			http.Error(rw, err.Error(), code)
		},
	}
	w.server = &http.Server{
		ErrorLog: silent, ReadHeaderTimeout: helloTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			// Each request is asked about, also on a connection to the host that is open: the policy may have changed.
			host, ok := canonical(hostOf(r.Host))
			if r.Method == http.MethodConnect || !ok || !g.current().allows(host, 80) {
				err := g.refuse(vm.Denial{Proto: "tcp", Name: printable(hostOf(r.Host)) + ":80", Reason: reasonName})
				http.Error(rw, err.Error(), http.StatusForbidden)
				return
			}
			proxy.ServeHTTP(rw, r)
		}),
	}
	return w
}

// hostOf is a Host header without its port.
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return s
}

// serve has the server take a connection, and returns when it is closed.
func (w *webProxy) serve(conn net.Conn) {
	gone := make(chan struct{})
	c := &ownConn{conn, sync.OnceValue(func() error { defer close(gone); return conn.Close() })}
	select {
	case w.conns <- c:
		<-gone
	case <-w.done:
	}
}

// ownConn is a connection that is closed in its own way.
type ownConn struct {
	net.Conn
	close func() error
}

// Close closes the connection.
func (c *ownConn) Close() error { return c.close() }

// Accept is for the server.
func (w *webProxy) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.done:
		return nil, net.ErrClosed
	}
}

// Addr is for the server.
func (w *webProxy) Addr() net.Addr { return &net.TCPAddr{} }

// Close has the server accept nothing more.
func (w *webProxy) Close() error {
	w.once.Do(func() { close(w.done) })
	return nil
}
