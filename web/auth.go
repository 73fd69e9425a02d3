package web

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/terraphim/tgr"
)

// access is what a request may do.
type access struct {
	trusted bool // may read private repositories and change things
	bearer  bool // showed the token in a header that no browser sends by itself
}

// admit says what a request may do, or why it may do nothing.
//
// With a token, the token is needed: as a bearer, or as the password of HTTP basic authentication, which is
// what a browser can show on a page. Without one, a request is trusted if it was made on this machine, which a
// loopback peer alone does not prove: a page elsewhere may have rebound its host name to 127.0.0.1 (the Host
// header tells), and a proxy may have forwarded it (its headers tell). Those are refused altogether.
func (s *Server) admit(r *http.Request) (access, error) {
	if s.cfg.Token != "" {
		given, bearer := credentials(r)
		if !same(given, s.cfg.Token) {
			return access{}, tgr.Errorf("web", tgr.Unauthorized, "this server needs its token: Authorization: Bearer …")
		}
		return access{trusted: true, bearer: bearer}, nil
	}
	if !loopbackPeer(r) {
		return access{}, nil
	}
	if !loopbackHost(r.Host) {
		return access{}, forbid("this server has no token, and then answers on this machine only to localhost and 127.0.0.1, not to the host %q", r.Host)
	}
	if h := forwarded(r); h != "" {
		return access{}, forbid("this server has no token, and then does not answer through a proxy (%s)", h)
	}
	return access{trusted: true}, nil
}

// mayChange says why a request may not change anything: it is not trusted, or a browser sent it for a page of
// another origin.
func (s *Server) mayChange(r *http.Request, a access) error {
	if !a.trusted {
		return forbid("this server has no token, and then takes orders only from its own machine")
	}
	if a.bearer {
		return nil
	}
	if err := s.origin.Check(r); err != nil {
		return forbid("a page of another origin may not do this: %w", err)
	}
	return nil
}

func credentials(r *http.Request) (token string, bearer bool) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(rest), true
	}
	_, password, _ := r.BasicAuth()
	return password, false
}

// same compares without telling by its duration how much is right, or how long the token is.
func same(given, want string) bool {
	g, w := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(g[:], w[:]) == 1
}

func loopbackPeer(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback()
}

// loopbackHost reports whether a Host header names this machine in a way that no DNS server can decide.
func loopbackHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Unmap().IsLoopback()
}

// forwarded returns the header by which a proxy between here and the sender betrays itself, or "".
func forwarded(r *http.Request) string {
	for _, h := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Cf-Connecting-Ip", "Via"} {
		if r.Header.Get(h) != "" {
			return h
		}
	}
	return ""
}
