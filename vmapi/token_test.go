package vmapi

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Every way to forge, outlive or bend a token ends with 401, and one that is right does not.
func TestTokens(t *testing.T) {
	r := newRig(t, nil)
	claims := func(change func(jwt.MapClaims)) jwt.MapClaims {
		c := jwt.MapClaims{"user_id": "u", "github_id": 42, "username": "u", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix()}
		if change != nil {
			change(c)
		}
		return c
	}
	sign := func(m jwt.SigningMethod, key any, c jwt.MapClaims) string {
		t.Helper()
		return must(jwt.NewWithClaims(m, c).SignedString(key))
	}
	private := must(rsa.GenerateKey(rand.Reader, 2048))
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(&private.PublicKey))})
	good := sign(jwt.SigningMethodHS256, testKey, claims(nil))
	parts := strings.Split(good, ".")
	raw := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for name, token := range map[string]string{
		"nothing":                     "",
		"no JWT":                      "secret",
		"none":                        sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, claims(nil)),
		"None, in other letters":      raw(`{"alg":"nOnE","typ":"JWT"}`) + "." + parts[1] + ".",
		"none with a signature":       raw(`{"alg":"none","typ":"JWT"}`) + "." + parts[1] + "." + parts[2],
		"no signature":                parts[0] + "." + parts[1] + ".",
		"another's signature":         parts[0] + "." + raw(`{"username":"root","exp":9999999999}`) + "." + parts[2],
		"HS384":                       sign(jwt.SigningMethodHS384, testKey, claims(nil)),
		"HS512":                       sign(jwt.SigningMethodHS512, testKey, claims(nil)),
		"RS256":                       sign(jwt.SigningMethodRS256, private, claims(nil)),
		"HS256 with an RSA key":       sign(jwt.SigningMethodHS256, public, claims(nil)),
		"RS256 signed as HS256":       raw(`{"alg":"RS256","typ":"JWT"}`) + "." + parts[1] + "." + parts[2],
		"another key":                 sign(jwt.SigningMethodHS256, []byte(strings.Repeat("x", 32)), claims(nil)),
		"an empty key":                sign(jwt.SigningMethodHS256, []byte{}, claims(nil)),
		"its end is past":             sign(jwt.SigningMethodHS256, testKey, claims(func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Hour).Unix() })),
		"no end":                      sign(jwt.SigningMethodHS256, testKey, claims(func(c jwt.MapClaims) { delete(c, "exp") })),
		"an end that is no time":      sign(jwt.SigningMethodHS256, testKey, claims(func(c jwt.MapClaims) { c["exp"] = "never" })),
		"an end of 0":                 sign(jwt.SigningMethodHS256, testKey, claims(func(c jwt.MapClaims) { c["exp"] = 0 })),
		"not good yet":                sign(jwt.SigningMethodHS256, testKey, claims(func(c jwt.MapClaims) { c["nbf"] = time.Now().Add(time.Hour).Unix() })),
		"issued later":                sign(jwt.SigningMethodHS256, testKey, claims(func(c jwt.MapClaims) { c["iat"] = time.Now().Add(time.Hour).Unix() })),
		"no user":                     sign(jwt.SigningMethodHS256, testKey, claims(func(c jwt.MapClaims) { delete(c, "username"); delete(c, "user_id") })),
		"a user's name of a megabyte": sign(jwt.SigningMethodHS256, testKey, claims(func(c jwt.MapClaims) { c["username"] = strings.Repeat("u", 10<<10) })),
		"a key of the token's choice": raw(`{"alg":"HS256","jwk":{"kty":"oct","k":"eHh4"},"kid":"../../dev/null"}`) + "." + parts[1] + "." + parts[2],
	} {
		t.Run(name, func(t *testing.T) {
			for _, rt := range routeTable() {
				if rt.open {
					continue
				}
				req := must(http.NewRequest(rt.method, r.url+strings.NewReplacer("{id}", "vm-0", "{exec}", "x", "{snapshot}", "y").Replace(rt.path), nil))
				req.Header.Set("Authorization", "Bearer "+token)
				answer := must(http.DefaultClient.Do(req))
				answer.Body.Close()
				if answer.StatusCode != http.StatusUnauthorized || answer.Header.Get("WWW-Authenticate") == "" {
					t.Errorf("%s %s: %d, want 401", rt.method, rt.path, answer.StatusCode)
				}
			}
		})
	}
	// What the original issued is taken, where the key is the same.
	if _, err := r.client(good).List(ctx(t)); err != nil {
		t.Errorf("a good token: %v", err)
	}
	if _, err := r.client(must(NewToken(testKey, "someone", time.Minute))).List(ctx(t)); err != nil {
		t.Errorf("a token of ours: %v", err)
	}
	for _, header := range []string{"Basic " + good, good, "Bearer", "bearer  "} {
		req := must(http.NewRequest("GET", r.url+"/api/vms", nil))
		req.Header.Set("Authorization", header)
		answer := must(http.DefaultClient.Do(req))
		answer.Body.Close()
		if answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("Authorization: %.20s…: %d, want 401", header, answer.StatusCode)
		}
	}
}

func TestNewToken(t *testing.T) {
	for _, tt := range []struct {
		key, user string
		good      time.Duration
	}{{"short", "u", time.Hour}, {string(testKey), "", time.Hour}, {string(testKey), "u", 0}, {string(testKey), "u", -time.Hour}, {string(testKey), strings.Repeat("u", 200), time.Hour}} {
		if token, err := NewToken([]byte(tt.key), tt.user, tt.good); err == nil {
			t.Errorf("a token for %q, good for %v, with a key of %d bytes: %s", cut(tt.user, 10), tt.good, len(tt.key), token)
		}
	}
	c, err := checkToken(testKey, must(NewToken(testKey, "u", time.Hour)))
	if err != nil || c.user() != "u" || time.Until(c.ExpiresAt.Time) > time.Hour {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := New(Config{Open: func(context.Context, []string) (Backend, error) { return Backend{}, nil }, Key: []byte("short")}); err == nil {
		t.Error("a server with a short key")
	}
}
