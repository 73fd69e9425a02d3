package network

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/time/rate"

	"github.com/terraphim/tgr/vm"
)

const (
	maxQuery     = 512
	dnsTimeout   = 5 * time.Second
	dnsPerSecond = 200 // queries of one machine
	dnsAtOnce    = 32
)

// upstream are the resolvers that names are asked of, from the host.
type upstream struct {
	servers []netip.AddrPort
	host    netns.NsHandle
}

// parseResolvConf returns the name servers of resolv.conf(5).
func parseResolvConf(text string) []netip.AddrPort {
	var servers []netip.AddrPort
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				servers = append(servers, netip.AddrPortFrom(a, dnsPort))
			}
		}
	}
	return servers
}

// exchange asks q of the resolvers, one after the other, and returns the first answer, which is to this question and
// has its id. network is "udp" or "tcp".
func (u *upstream) exchange(ctx context.Context, network string, q dnsmessage.Question) (answer []byte, err error) {
	var id [2]byte
	rand.Read(id[:])
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: binary.BigEndian.Uint16(id[:]), RecursionDesired: true},
		Questions: []dnsmessage.Question{q},
	}
	packed, err := query.Pack()
	if err != nil {
		return nil, fmt.Errorf("DNS query: %w", err)
	}
	err = errors.New("this host has no resolver")
	for _, server := range u.servers[:min(len(u.servers), 3)] {
		if answer, err = u.ask(ctx, network, server, packed); err == nil {
			return answer, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("resolve %s: %w", q.Name, err)
}

func (u *upstream) ask(ctx context.Context, network string, server netip.AddrPort, query []byte) (answer []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, dnsTimeout, errors.New("the resolver does not answer"))
	defer cancel()
	var conn net.Conn
	err = inside(u.host, func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, server.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	conn.SetDeadline(end)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if network == "tcp" {
		if err := writeTCP(conn, query); err != nil {
			return nil, err
		}
		answer, err = readTCP(conn, 1<<16)
		if err == nil && !answers(answer, query) {
			err = fmt.Errorf("resolver %s answers another question", server)
		}
		return answer, err
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], query) { // others are somebody's guesses
			return buf[:n], nil
		}
	}
}

// answers reports whether a message answers a query.
func answers(answer, query []byte) bool {
	var a, q dnsmessage.Parser
	ha, err1 := a.Start(answer)
	hq, err2 := q.Start(query)
	if err1 != nil || err2 != nil || ha.ID != hq.ID || !ha.Response {
		return false
	}
	qa, err1 := a.Question()
	qq, err2 := q.Question()
	return err1 == nil && err2 == nil && qa.Type == qq.Type && qa.Class == qq.Class && strings.EqualFold(qa.Name.String(), qq.Name.String())
}

// lookup returns the IPv4 addresses of a canonical name.
func (u *upstream) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", name, err)
	}
	q := dnsmessage.Question{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	answer, err := u.exchange(ctx, "udp", q)
	if err == nil && truncated(answer) {
		answer, err = u.exchange(ctx, "tcp", q)
	}
	if err != nil {
		return nil, err
	}
	return addressesOf(answer)
}

func truncated(msg []byte) bool { return len(msg) > 2 && msg[2]&2 != 0 }

// addressesOf returns the addresses of type A that an answer holds.
func addressesOf(msg []byte) ([]netip.Addr, error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil {
		return nil, fmt.Errorf("DNS answer: %w", err)
	}
	if h.RCode != dnsmessage.RCodeSuccess {
		return nil, fmt.Errorf("DNS answer: %s", strings.TrimPrefix(h.RCode.String(), "RCode"))
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, fmt.Errorf("DNS answer: %w", err)
	}
	var out []netip.Addr
	for {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("DNS answer: %w", err)
		}
		if h.Type != dnsmessage.TypeA || h.Class != dnsmessage.ClassINET {
			if err := p.SkipAnswer(); err != nil {
				return nil, fmt.Errorf("DNS answer: %w", err)
			}
			continue
		}
		a, err := p.AResource()
		if err != nil {
			return nil, fmt.Errorf("DNS answer: %w", err)
		}
		out = append(out, netip.AddrFrom4(a.A))
	}
}

// forwarder answers a machine's DNS queries.
type forwarder struct {
	guard *guard
	up    *upstream
	rate  *rate.Limiter
	busy  chan struct{} // a token for each query over UDP that is being answered
}

func newForwarder(g *guard, up *upstream) *forwarder {
	return &forwarder{guard: g, up: up, rate: rate.NewLimiter(dnsPerSecond, 2*dnsPerSecond), busy: make(chan struct{}, dnsAtOnce)}
}

// serveUDP answers until the socket is closed. Queries that are too many are dropped, as UDP does.
func (f *forwarder) serveUDP(ctx context.Context, conn net.PacketConn, s *service) {
	buf := make([]byte, maxQuery+1)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if n > maxQuery {
			continue
		}
		select {
		case f.busy <- struct{}{}:
		default:
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		s.work.Go(func() {
			defer func() { <-f.busy }()
			if answer := f.answer(ctx, "udp", query); answer != nil {
				conn.WriteTo(answer, from)
			}
		})
	}
}

// serveTCP answers one client until it leaves, or is silent.
func (f *forwarder) serveTCP(ctx context.Context, conn net.Conn) {
	for range 100 {
		conn.SetDeadline(time.Now().Add(2 * dnsTimeout))
		query, err := readTCP(conn, maxQuery)
		if err != nil {
			return
		}
		answer := f.answer(ctx, "tcp", query)
		if answer == nil || writeTCP(conn, answer) != nil {
			return
		}
	}
}

// answer returns the answer to a query, nil where there is none to give.
func (f *forwarder) answer(ctx context.Context, network string, query []byte) []byte {
	q, h, err := parseQuery(query)
	if err != nil || !f.rate.Allow() {
		return nil
	}
	reply := func(code dnsmessage.RCode) []byte {
		m := dnsmessage.Message{Header: dnsmessage.Header{
			ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: code,
		}, Questions: []dnsmessage.Question{q}}
		b, err := m.Pack()
		if err != nil {
			return nil
		}
		return b
	}
	name, ok := canonical(q.Name.String())
	if h.OpCode != 0 || q.Class != dnsmessage.ClassINET || !ok {
		return reply(dnsmessage.RCodeRefused)
	}
	if p := f.guard.current(); !p.allows(name, 0) {
		why := reasonName
		if p.mode == vm.EgressNone {
			why = reasonNone
		}
		f.guard.deny(vm.Denial{Proto: "dns", Name: name, Reason: why})
		return reply(dnsmessage.RCodeRefused)
	}
	switch q.Type {
	case dnsmessage.TypeAAAA, dnsmessage.TypeHTTPS, dnsmessage.TypeSVCB:
		return reply(dnsmessage.RCodeSuccess) // there is no IPv6, nor another way to the host than its name
	case dnsmessage.TypeAXFR, dnsmessage.TypeALL:
		return reply(dnsmessage.RCodeRefused)
	}
	answer, err := f.up.exchange(ctx, network, q)
	if err != nil {
		return reply(dnsmessage.RCodeServerFailure)
	}
	if !f.admit(name, answer) {
		return reply(dnsmessage.RCodeRefused)
	}
	binary.BigEndian.PutUint16(answer, h.ID)
	return answer
}

// admit notes the addresses of an answer, unless the machine would not reach them: then it is not told.
func (f *forwarder) admit(name string, answer []byte) bool {
	addrs, err := addressesOf(answer)
	if err != nil {
		return true // "no such name" is an answer too
	}
	for _, a := range addrs {
		if why := f.guard.refusal(a); why != "" {
			f.guard.deny(vm.Denial{Proto: "dns", Name: name, Addr: netip.AddrPortFrom(a, 0), Reason: why})
			return false
		}
	}
	for _, a := range addrs {
		f.guard.pin(name, a)
	}
	return true
}

// parseQuery reads a query of one question.
func parseQuery(msg []byte) (dnsmessage.Question, dnsmessage.Header, error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil {
		return dnsmessage.Question{}, h, err
	}
	if h.Response {
		return dnsmessage.Question{}, h, errors.New("not a query")
	}
	all, err := p.AllQuestions()
	if err != nil {
		return dnsmessage.Question{}, h, err
	}
	if len(all) != 1 {
		return dnsmessage.Question{}, h, fmt.Errorf("%d questions", len(all))
	}
	return all[0], h, nil
}

func readTCP(r io.Reader, limit int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > limit {
		return nil, fmt.Errorf("DNS message of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeTCP(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}
