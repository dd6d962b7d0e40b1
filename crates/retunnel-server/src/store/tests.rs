use super::*;

async fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("data")).await.expect("a store");
    (dir, store)
}

#[tokio::test]
async fn only_the_owner_may_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, store) = store().await;
    store.create_account("a@example.test", &[1; 32], None).await.expect("made");
    let data = dir.path().join("data");
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    for entry in std::fs::read_dir(&data).expect("a directory") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    store.close().await;
    let file = data.join(FILE);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("set");
    let _again = Store::open(&data).await.expect("a store");
    assert_eq!(mode(&file), 0o600, "closed again");
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let (dir, store) = store().await;
    let id = store.create_account("a@example.test", &[1; 32], None).await.expect("made");
    store.save_lease(&LeaseKey::Name("brisk-otter".into()), id).await.expect("saved");
    store.save_lease(&LeaseKey::Port(20_000), id).await.expect("saved");
    store.save_lease(&LeaseKey::Port(20_001), id).await.expect("saved");
    store.remove_lease(&LeaseKey::Port(20_001)).await.expect("removed");
    store.close().await;
    let store = Store::open(&dir.path().join("data")).await.expect("a store");
    let found = store.token(&[1; 32]).await.expect("read").expect("known");
    assert_eq!((found.account, found.email.as_str()), (id, "a@example.test"));
    let mut keys: Vec<_> = store.leases().await.expect("read").into_iter().map(|lease| lease.key.columns()).collect();
    keys.sort();
    assert_eq!(keys, [("http", "brisk-otter".to_owned()), ("tcp", "20000".to_owned())]);
}

#[tokio::test]
async fn a_failed_registration_leaves_the_invitation_good() {
    let (_dir, store) = store().await;
    store.create_account("a@example.test", &[1; 32], None).await.expect("made");
    store.create_invite(&[9; 32]).await.expect("made");
    let taken = store.create_account("a@example.test", &[2; 32], Some(&[9; 32])).await;
    assert!(matches!(taken, Err(StoreError::EmailTaken)), "{taken:?}");
    store.create_account("b@example.test", &[3; 32], Some(&[9; 32])).await.expect("the invitation is still good");
    let used = store.create_account("c@example.test", &[4; 32], Some(&[9; 32])).await;
    assert!(matches!(used, Err(StoreError::InviteInvalid)), "{used:?}");
    assert!(store.token(&[4; 32]).await.expect("read").is_none(), "nothing is left of a refused registration");
}

#[tokio::test]
async fn an_email_address_is_the_same_in_capitals_and_in_small_letters() {
    let (_dir, store) = store().await;
    store.create_account("Ada.Lovelace@Example.TEST", &[1; 32], None).await.expect("made");
    for same in ["ada.lovelace@example.test", "ADA.LOVELACE@EXAMPLE.TEST", " Ada.Lovelace@example.test "] {
        let taken = store.create_account(same, &[2; 32], None).await;
        assert!(matches!(taken, Err(StoreError::EmailTaken)), "{same}: {taken:?}");
    }
    store.create_account("\u{c4}da@example.test", &[3; 32], None).await.expect("made");
    let taken = store.create_account("\u{e4}da@example.test", &[4; 32], None).await;
    assert!(matches!(taken, Err(StoreError::EmailTaken)), "{taken:?}");
    let found = store.token(&[1; 32]).await.expect("read").expect("known");
    assert_eq!(found.email, "ada.lovelace@example.test");
}

#[tokio::test]
async fn a_token_is_replaced_once_even_by_two_at_a_time() {
    let (_dir, store) = store().await;
    store.create_account("a@example.test", &[1; 32], None).await.expect("made");
    let (old, first, second) = ([1; 32], [2; 32], [3; 32]);
    let (one, two) = tokio::join!(store.replace_token(&old, &first), store.replace_token(&old, &second));
    assert_eq!(u8::from(one.expect("answered")) + u8::from(two.expect("answered")), 1);
    assert!(store.token(&old).await.expect("read").expect("known").is_revoked);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_an_error_and_stays_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join(FILE);
    std::fs::write(&file, "not a database, but precious").expect("written");
    Store::open(dir.path()).await.expect_err("not a database");
    assert_eq!(std::fs::read(&file).expect("read"), b"not a database, but precious");
}

#[tokio::test]
async fn a_database_of_a_newer_server_is_refused_by_name() {
    let (dir, store) = store().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'of the future', 1, x'00', 0)",
    )
    .execute(&store.writer)
    .await
    .expect("written");
    store.close().await;
    let refused = Store::open(&dir.path().join("data")).await;
    assert!(matches!(refused, Err(StoreError::Newer(99))), "{refused:?}");
}
