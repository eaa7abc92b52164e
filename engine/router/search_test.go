package router

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/server"
)

// asked is a search among instances of which each refuses as often as it says, then takes.
func asked(ctx context.Context, avoid string, ids []string, refuse map[string][]string) (order []string, err error) {
	w := &want{tried: map[string]bool{}}
	if avoid != "" {
		w.tried[avoid] = true
	}
	choose := func(context.Context, *want) (cluster.Member, *charge) {
		for _, id := range ids {
			if !w.tried[id] {
				return cluster.Member{ID: id}, &charge{}
			}
		}
		return cluster.Member{}, nil
	}
	_, err = search(ctx, w, avoid, nil, choose, func(m cluster.Member, _ *charge) (*stream, error) {
		order = append(order, m.ID)
		if kinds := refuse[m.ID]; len(kinds) > 0 {
			refuse[m.ID] = kinds[1:]
			return nil, &Error{kinds[0], "no"}
		}
		return &stream{}, nil
	})
	return order, err
}

func TestSearch(t *testing.T) {
	const full, away, no = server.KindQueueFull, server.KindUnavailable, "internal"
	for _, c := range []struct {
		name, avoid string
		refuse      map[string][]string
		order       string
		fails       string
	}{
		{"the first takes it", "", nil, "a", ""},
		{"full ones are passed over", "", map[string][]string{"a": {full}, "b": {full}}, "abc", ""},
		{"so are those that are away, however many", "", map[string][]string{"a": {away}, "b": {away}, "c": {away}, "d": {away}}, "abcde", ""},
		{"all are full for who is new", "", map[string][]string{"a": {full}, "b": {full}, "c": {full}, "d": {full}, "e": {full}}, "abcde", full},
		{"all are away", "", map[string][]string{"a": {away}, "b": {away}, "c": {away}, "d": {away}, "e": {away}}, "abcde", away},
		{"one was full, and who is told so comes again", "", map[string][]string{"a": {away}, "b": {full}, "c": {away}, "d": {no}, "e": {away}}, "abcde", full},
		{"what three refuse others will refuse", "", map[string][]string{"a": {no}, "b": {no}, "c": {no}}, "abc", no},
		{"what had a home asks the full ones again, another free one first", "a", map[string][]string{"b": {full}}, "bc", ""},
		{"what had a home waits for the full ones", "a", map[string][]string{"a": {away}, "b": {full, full}, "c": {away}, "d": {away}, "e": {away}}, "bcdeabb", ""},
		{"nobody is there", "a", map[string][]string{"a": {away}, "b": {away}, "c": {away}, "d": {away}, "e": {away}}, "bcdea", away},
	} {
		order, err := asked(t.Context(), c.avoid, strings.Split("abcde", ""), c.refuse)
		if got := strings.Join(order, ""); got != c.order || (err != nil) != (c.fails != "") || err != nil && kindOf(err) != c.fails {
			t.Errorf("%s: asked %q, %v", c.name, got, err)
		}
	}
	ctx, leave := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	time.AfterFunc(10*time.Millisecond, func() { leave(gone) })
	busy := slices.Repeat([]string{full}, 1000)
	if order, err := asked(ctx, "a", []string{"a", "b"}, map[string][]string{"a": {away}, "b": busy}); err == nil || len(order) != 2 {
		t.Errorf("nobody waits any more: asked %q, %v", order, err)
	}
}
