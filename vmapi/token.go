package vmapi

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// minKey is how many bytes a key has at least: those of the hash, as RFC 7518 §3.2 demands.
const minKey = 32

// tokenLeeway is how far the clocks of two hosts may be apart.
const tokenLeeway = 30 * time.Second

// Claims are what a token says of who shows it, in the original's words.
type Claims struct {
	UserID   string `json:"user_id"`
	GitHubID uint64 `json:"github_id,omitempty"`
	Username string `json:"username"`
	jwt.RegisteredClaims
}

// NewToken signs a token with HS256 that is good for a time. The key has at least 32 bytes.
func NewToken(key []byte, username string, good time.Duration) (string, error) {
	if len(key) < minKey {
		return "", fmt.Errorf("the key has %d bytes, want at least %d", len(key), minKey)
	}
	if username == "" || len(username) > maxLabel || good <= 0 {
		return "", errors.New("a token needs a name of at most 128 bytes and a time to be good for")
	}
	now := time.Now()
	return jwt.NewWithClaims(jwt.SigningMethodHS256, Claims{UserID: username, Username: username, RegisteredClaims: jwt.RegisteredClaims{
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(good))}}).SignedString(key)
}

// checkToken reads a token. It takes HS256 alone, and no token without an end.
func checkToken(key []byte, token string) (*Claims, error) {
	var c Claims
	_, err := jwt.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return key, nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(tokenLeeway))
	if err != nil {
		return nil, err
	}
	if c.Username == "" && c.UserID == "" {
		return nil, errors.New("it names no user")
	}
	if len(c.Username) > maxLabel || len(c.UserID) > maxLabel {
		return nil, errors.New("its user's name is too long")
	}
	return &c, nil
}

// user names who showed the token.
func (c *Claims) user() string {
	if c.Username != "" {
		return c.Username
	}
	return c.UserID
}

// admit says who sent a request, or why it is refused.
func admit(key []byte, r *http.Request) (*Claims, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return nil, errorf(http.StatusUnauthorized, "unauthorized", "no token: send Authorization: Bearer …; tgr vmd token issues one")
	}
	c, err := checkToken(key, strings.TrimSpace(token))
	if err != nil {
		return nil, errorf(http.StatusUnauthorized, "unauthorized", "the token is refused: %v", err)
	}
	return c, nil
}
