-- name: count_campaigns
-- Whether the stack has anything to hand out yet.
SELECT count(*) FROM campaign;
