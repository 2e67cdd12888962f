-- A voucher's number is its key by itself: the bucket, which follows from it, made each entry of the index eight bytes
-- longer. Vouchers come in the order of their numbers, so pages may be full from the start. Where tables lie by bucket,
-- a key must name it: sql/citus.sql puts it back.
ALTER TABLE voucher DROP CONSTRAINT voucher_pkey;
ALTER TABLE voucher ADD PRIMARY KEY (voucher_id) WITH (fillfactor = 100);
