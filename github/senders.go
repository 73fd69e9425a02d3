package github

import (
	"container/list"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// senders holds a token bucket for each of the addresses that were heard of last.
type senders struct {
	max   int
	limit rate.Limit
	burst int

	mu    sync.Mutex
	byKey map[netip.Prefix]*list.Element
	order *list.List // of *sender, the latest first
}

type sender struct {
	key    netip.Prefix
	bucket *rate.Limiter
}

func newSenders(limit int, r rate.Limit, burst int) *senders {
	return &senders{max: limit, limit: r, burst: burst, byKey: make(map[netip.Prefix]*list.Element), order: list.New()}
}

// take takes a token from the sender's bucket, or says how long to wait for one.
func (s *senders) take(addr string, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := senderKey(addr)
	e, ok := s.byKey[key]
	if !ok {
		e = s.order.PushFront(&sender{key: key, bucket: rate.NewLimiter(s.limit, s.burst)})
		s.byKey[key] = e
		if s.order.Len() > s.max {
			old := s.order.Remove(s.order.Back()).(*sender)
			delete(s.byKey, old.key)
		}
	}
	s.order.MoveToFront(e)
	bucket := e.Value.(*sender).bucket
	if bucket.AllowN(now, 1) {
		return 0
	}
	missing := 1 - bucket.TokensAt(now)
	return time.Duration(missing / float64(s.limit) * float64(time.Second))
}

// senderOf is the address that sent a request: what a proxy on this host says it is, for then everybody comes from
// loopback and one sender's flood would be GitHub's too. Of several addresses the last is the one that the proxy
// itself saw. One who lies about it, through a proxy that passes the header on, gets more buckets and nothing else.
func senderOf(r *http.Request) string {
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && ap.Addr().Unmap().IsLoopback() {
		list := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		if ip, err := netip.ParseAddr(strings.TrimSpace(list[len(list)-1])); err == nil {
			return netip.AddrPortFrom(ip, 0).String()
		}
	}
	return r.RemoteAddr
}

// senderKey is the address without its port; of IPv6 the /64, which is what one sender owns.
func senderKey(addr string) netip.Prefix {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return netip.Prefix{} // a test, or a Unix socket: one sender
	}
	ip, bits := ap.Addr().Unmap().WithZone(""), 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
